-- Access keys can expire as API keys do, so that one that is replaced goes on working for a while.
ALTER TABLE identity.access_key ADD COLUMN expires_at timestamptz;
