"""Schema `identity`: principals, API keys, access keys, nonces. Every service reads it, so that none needs another."""
