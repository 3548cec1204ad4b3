-- name: readable
-- Stands in front of a query for a caller of whom $caller tells: {"strict", "roles", "groups", "namespaces"}. The query
-- then reads readable_x where it says registry.x.
WITH rule AS MATERIALIZED (
    SELECT r.* FROM registry.rules($caller::jsonb, '{DESCRIBE}') r WHERE r.granted
),
-- object_by_name.
ruled AS MATERIALIZED (
    SELECT DISTINCT p.project FROM registry.object p WHERE p.kind = 'permission'
),
-- A feature is readable where its view is. A project without permissions is open, unless $caller is strict. The rules are
-- tried row by row, so that a page of a list reads no more rows than it has to.
readable_object AS NOT MATERIALIZED (
    SELECT o.* FROM registry.object o
    WHERE (NOT ($caller::jsonb -> 'strict')::boolean AND o.project <> ALL (ARRAY(SELECT r.project FROM ruled r)))
        OR CASE WHEN o.parent_id IS NULL THEN EXISTS (
            SELECT FROM rule r
            WHERE r.project = o.project AND (r.types IS NULL OR r.types && o.types)
                AND (r.patterns IS NULL OR o.name ~ ANY (r.patterns)) AND o.tags @> r.tags
        ) ELSE (
            SELECT EXISTS (
                SELECT FROM rule r
                WHERE r.project = v.project AND (r.types IS NULL OR r.types && v.types)
                    AND (r.patterns IS NULL OR v.name ~ ANY (r.patterns)) AND v.tags @> r.tags
            )
            FROM registry.object v WHERE v.id = o.parent_id
        ) END
),
readable_project AS NOT MATERIALIZED (
    SELECT p.* FROM registry.project p
    WHERE EXISTS (SELECT FROM readable_object o WHERE o.kind = 'project' AND o.project = p.name AND o.name = p.name)
),
readable_tally AS NOT MATERIALIZED (
    SELECT o.project, o.kind, count(*) AS objects FROM readable_object o GROUP BY o.project, o.kind
),
-- An edge is hidden if an object at either end is.
readable_edge AS NOT MATERIALIZED (
    SELECT e.* FROM registry.edge e
    WHERE NOT EXISTS (
        SELECT FROM (VALUES (e.source_type, e.source_name), (e.target_type, e.target_name)) n (type, name)
        JOIN registry.object h ON h.project = e.project AND h.name = n.name AND h.parent = ''
            AND h.family = CASE n.type WHEN 'labelView' THEN 'featureView' ELSE n.type END
        WHERE NOT (SELECT EXISTS (SELECT FROM readable_object o WHERE o.id = h.id))
    )
)

-- name: judgement
-- $1 caller, $2 actions, $3 project, $4 types, $5 name, $6 tags. A row for each rule that covers the object, and at least
-- one row; `ruled` says whether the project has permissions at all.
SELECT r.name, r.granted, r.asked,
    EXISTS (SELECT FROM registry.object p WHERE p.kind = 'permission' AND p.project = $3) AS ruled
FROM (SELECT) one
LEFT JOIN registry.rules($1::jsonb, $2::text[]) r ON r.project = $3
    AND (r.types IS NULL OR r.types && $4::text[])
    AND (r.patterns IS NULL OR $5::text ~ ANY (r.patterns))
    AND $6::jsonb @> r.tags
ORDER BY r.name;

-- name: types_of
SELECT registry.types_of($1, $2);

-- name: tries_pattern
SELECT '' ~ ('^(?:' || $1::text || ')$');

-- name: target
-- object_key.
SELECT o.kind, o.tags, o.rendered FROM registry.object o
WHERE o.project = $1 AND o.family = $2 AND o.parent = '' AND o.name = $3;
