-- Files of offline tables that the store wrote itself, where they are not kept for ever.
CREATE TABLE management.offline_file (
    path text PRIMARY KEY,
    -- The folder of the table that it is in.
    table_path text NOT NULL,
    -- The task that wrote it, as the file itself says too.
    task_id bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX offline_file_expires ON management.offline_file (expires_at);
