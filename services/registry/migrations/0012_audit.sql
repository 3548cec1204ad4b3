-- Who changed what, and when: one shape in every schema, see chassis/audit.py.
CREATE TABLE registry.audit (
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
CREATE INDEX audit_object ON registry.audit (project, name, changed_at, id);
CREATE INDEX audit_principal ON registry.audit (principal, changed_at, id);

-- An object as its entries show it; of one whose JSON is more than a megabyte its size and its SHA-256. Of a view also
-- what is not in its JSON. Written so that it is inlined, because every apply comes here.
CREATE FUNCTION registry.audited(rendered bytea, state int, version int) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN octet_length(rendered) > 1048576
            THEN '{"bytes":' || octet_length(rendered)::text || ',"sha256":"' || encode(sha256(rendered), 'hex') || '"}'
        WHEN version IS NULL THEN convert_from(rendered, 'UTF8')
        ELSE convert_from(
            convert_to('{"state":' || state::text || ',"version":' || version::text || ',', 'UTF8')
            || substr(rendered, 2), 'UTF8'
        )
    END
$$;
