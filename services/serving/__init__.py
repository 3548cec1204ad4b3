"""Feature vectors: what groups and views there are in PostgreSQL, their rows in Redis."""
