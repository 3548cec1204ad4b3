-- Who changed what, and when: one shape in every schema, see chassis/audit.py.
CREATE TABLE management.audit (
    id bigint GENERATED ALWAYS AS IDENTITY,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    request_id text COLLATE "C" NOT NULL,
    principal text COLLATE "C" NOT NULL,
    issuer text COLLATE "C" NOT NULL,
    -- Or feature store; empty for what is in none.
    project text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    -- JSON. NULL: there was no such object, or is none any more.
    before text COLLATE "C",
    after text COLLATE "C",
    PRIMARY KEY (changed_at, id)
);
CREATE INDEX audit_object ON management.audit (project, name, changed_at, id);
CREATE INDEX audit_principal ON management.audit (principal, changed_at, id);
