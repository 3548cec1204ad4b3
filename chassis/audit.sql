-- The tables have one shape; {schema} is one of ours, named in code.

-- name: record
INSERT INTO {schema}.audit (request_id, principal, issuer, operation, kind, name, project, before, after)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: sweep
-- Primary key. The oldest $2 of those older than $1 days; what another process is removing is left to it.
WITH old AS (
    SELECT changed_at, id FROM {schema}.audit WHERE changed_at < now() - make_interval(days => $1)
    ORDER BY changed_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM {schema}.audit a USING old o WHERE (a.changed_at, a.id) = (o.changed_at, o.id) RETURNING 1
)
SELECT count(*) FROM gone;

-- name: part
-- audit_object or audit_principal, if a project or a principal is asked for, else the primary key.
(SELECT * FROM (
    SELECT '{schema}'::text AS service, a.*,
        coalesce(octet_length(a.before), 0) + coalesce(octet_length(a.after), 0) AS bytes
    FROM {schema}.audit a
) entry WHERE {conditions} ORDER BY changed_at DESC, id DESC LIMIT $1)

-- name: page
-- The newest $1 of all parts, as far as they begin within $2 bytes.
SELECT * FROM (
    SELECT *, sum(bytes) OVER (
        ORDER BY changed_at DESC, service DESC, id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM ({parts}) found
) counted
WHERE coalesce(bytes_before, 0) < $2 ORDER BY changed_at DESC, service DESC, id DESC LIMIT $1;
