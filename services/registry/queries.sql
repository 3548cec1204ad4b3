-- Writing. The writers of a project take turns on its row: each write changes it, and to another moment than before.

-- name: touch_project
-- project_pkey. No row comes back without that project.
UPDATE registry.project SET updated = greatest(clock_timestamp(), updated + interval '1 microsecond')
WHERE name = $1 RETURNING updated;

-- name: ensure_project
-- project_pkey.
INSERT INTO registry.project AS p (name, uuid, updated) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET updated = greatest(clock_timestamp(), p.updated + interval '1 microsecond')
RETURNING p.updated;

-- name: before_apply
-- project_pkey, object_key, then materialization_pkey. The object of family $2 and name $3 as it is stored, when its
-- project was last written, and the moment of the next write. One row comes back, whatever of that there is.
SELECT p.updated AS seen, greatest(clock_timestamp(), p.updated + interval '1 microsecond') AS now,
    o.id, o.kind, o.proto AS content, o.state, o.version,
    CASE WHEN o.kind IN ('featureView', 'streamFeatureView') THEN (
        SELECT string_agg(m.proto, '' ORDER BY m.position) FROM registry.materialization m WHERE m.object_id = o.id
    ) END AS intervals
FROM (SELECT) one
LEFT JOIN registry.project p ON p.name = $1
LEFT JOIN registry.object o ON o.project = p.name AND o.family = $2 AND o.parent = '' AND o.name = $3;

-- name: put_object
-- project_pkey, object_key, object_of_parent, edge_pkey. An object with its features, its version if $16, and its edges
-- if $27. No row comes back, and nothing is written, if the project was written to since it was seen at $2. An object
-- that is there keeps its id and its time of creation; features that did not change are not written. $32 to $34 say who
-- applies it.
WITH turn AS (
    UPDATE registry.project SET updated = $3 WHERE name = $1 AND updated = $2 RETURNING name
),
-- As it is while this statement runs.
was AS (
    SELECT registry.audited(o.rendered, o.state, o.version) AS object
    FROM registry.object o WHERE o.project = $1 AND o.family = $5 AND o.parent = '' AND o.name = $6
),
put AS (
    INSERT INTO registry.object AS o (
        project, kind, family, name, sort_name, type, description, owner, tags, created, updated, proto, rendered,
        state, version
    )
    SELECT t.name, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $3, $3, $12, $13, $14, $15::int FROM turn t
    ON CONFLICT (project, family, parent, name) DO UPDATE SET
        kind = excluded.kind, type = excluded.type, description = excluded.description, owner = excluded.owner,
        tags = excluded.tags, updated = excluded.updated, proto = excluded.proto, rendered = excluded.rendered,
        state = excluded.state, version = excluded.version
    RETURNING o.id
),
dropped_features AS (
    DELETE FROM registry.object f USING put p WHERE f.parent_id = p.id AND f.name <> ALL($20::text[])
),
put_features AS (
    INSERT INTO registry.object AS o (
        project, kind, family, parent_id, parent, position, name, sort_name, type, description, owner, tags,
        created, updated, proto, rendered
    )
    SELECT $1, $18, $19, p.id, $6, f.number - 1, f.name, f.sort_name, f.type, f.description, '', f.tags, $3, $3,
        f.proto, f.rendered
    FROM put p
    CROSS JOIN unnest($20::text[], $21::text[], $22::text[], $23::text[], $24::jsonb[], $25::bytea[], $26::bytea[])
        WITH ORDINALITY AS f (name, sort_name, type, description, tags, proto, rendered, number)
    ON CONFLICT (project, family, parent, name) DO UPDATE SET
        kind = excluded.kind, position = excluded.position, type = excluded.type, description = excluded.description,
        tags = excluded.tags, updated = excluded.updated, proto = excluded.proto, rendered = excluded.rendered
    WHERE (o.kind, o.position, o.proto) IS DISTINCT FROM (excluded.kind, excluded.position, excluded.proto)
),
put_version AS (
    INSERT INTO registry.version (object_id, number, id, created, proto)
    SELECT p.id, $15::int, $17, $3, $12 FROM put p WHERE $16
),
dropped_edges AS (
    DELETE FROM registry.edge e USING put p WHERE e.object_id = p.id AND $27
),
-- Behind those that go, which are still there while this statement runs.
put_edges AS (
    INSERT INTO registry.edge (object_id, position, project, source_type, source_name, target_type, target_name)
    SELECT p.id, l.position + e.number, $1, e.source_type, e.source_name, e.target_type, e.target_name
    FROM put p
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS position FROM registry.edge e WHERE e.object_id = p.id
    ) l
    CROSS JOIN unnest($28::text[], $29::text[], $30::text[], $31::text[])
        WITH ORDINALITY AS e (source_type, source_name, target_type, target_name, number)
),
logged AS (
    INSERT INTO registry.audit (request_id, principal, issuer, project, kind, name, operation, before, after)
    SELECT $32, $33, $34, $1, $4, $6, CASE WHEN w.object IS NULL THEN 'create' ELSE 'update' END,
        w.object, registry.audited($13, $14, $15)
    FROM put p LEFT JOIN was w ON true
)
SELECT id FROM put;

-- name: materialize_view
-- object_key. No row comes back if there is no such view. $5 is the interval as JSON; $6 to $8 say who materialized it.
WITH put AS (
    UPDATE registry.object SET state = $3, updated = $4
    WHERE project = $1 AND family = 'featureView' AND parent = '' AND name = $2 AND kind = 'featureView'
    RETURNING id
),
logged AS (
    INSERT INTO registry.audit (request_id, principal, issuer, project, kind, name, operation, after)
    SELECT $6, $7, $8, $1, 'featureView', $2, 'materialize', $5 FROM put
)
SELECT id FROM put;

-- name: materializations
-- view_by_name, then materialization_pkey. Of the views of project $1, or of view $2, the latest first: an interval's JSON
-- begins with its start. $3 is how many, $4 how many to skip.
SELECT o.name, m.position, m.proto
FROM registry.object o JOIN registry.materialization m ON m.object_id = o.id
WHERE o.project = $1 AND o.kind = 'featureView' AND ($2 = '' OR o.name = $2)
ORDER BY m.rendered COLLATE "C" DESC, o.name, m.position LIMIT $3 OFFSET $4;

-- name: count_materializations
-- view_by_name, then materialization_pkey.
SELECT count(*)
FROM registry.object o JOIN registry.materialization m ON m.object_id = o.id
WHERE o.project = $1 AND o.kind = 'featureView' AND ($2::text = '' OR o.name = $2);

-- name: put_intervals
-- materialization_pkey. Behind those that the view $1 has; the position of the last one comes back.
WITH added AS (
    INSERT INTO registry.materialization (object_id, position, proto, rendered)
    SELECT $1, coalesce(
        (SELECT m.position FROM registry.materialization m WHERE m.object_id = $1 ORDER BY m.position DESC LIMIT 1), 0
    ) + i.number, i.proto, i.rendered
    FROM unnest($2::bytea[], $3::text[]) WITH ORDINALITY AS i (proto, rendered, number)
    RETURNING position
)
SELECT max(position) FROM added;

-- name: oldest_intervals
-- materialization_pkey.
SELECT position, proto FROM registry.materialization WHERE object_id = $1 AND position <= $2 ORDER BY position;

-- name: drop_intervals
-- materialization_pkey.
DELETE FROM registry.materialization WHERE object_id = $1 AND position < $2;

-- name: set_interval
-- materialization_pkey.
UPDATE registry.materialization SET proto = $3, rendered = $4 WHERE object_id = $1 AND position = $2;

-- name: next_version
-- version_pkey.
SELECT coalesce(max(number) + 1, 0) FROM registry.version WHERE object_id = $1;

-- name: pin_version
-- version_pkey. A version and the newest one.
(SELECT number, proto FROM registry.version WHERE object_id = $1 AND number = $2)
UNION ALL
(SELECT number, proto FROM registry.version WHERE object_id = $1 ORDER BY number DESC LIMIT 1);

-- name: delete_object
-- object_key. Takes features and edges along. No row comes back if there is none. $4 to $6 say who deletes it.
WITH gone AS (
    DELETE FROM registry.object WHERE project = $1 AND family = $2 AND parent = '' AND name = $3
    RETURNING id, project, kind, name, registry.audited(rendered, state, version) AS object
),
logged AS (
    INSERT INTO registry.audit (request_id, principal, issuer, project, kind, name, operation, before)
    SELECT $4, $5, $6, g.project, g.kind, g.name, 'delete', g.object FROM gone g
)
SELECT id FROM gone;

-- name: delete_project
-- project_pkey, object_key. Takes everything in it along. No row comes back if there is none. $2 to $4 say who deletes it.
WITH logged AS (
    INSERT INTO registry.audit (request_id, principal, issuer, project, kind, name, operation, before)
    SELECT $2, $3, $4, o.project, o.kind, o.name, 'delete', registry.audited(o.rendered, o.state, o.version)
    FROM registry.object o WHERE o.project = $1 AND o.parent = ''
    ORDER BY o.kind = 'project', o.kind, o.name
)
DELETE FROM registry.project WHERE name = $1 RETURNING name;

-- name: put_infra
-- project_pkey. $3 to $5 say who does it. The log shows hashes: the message is kept as it was sent, whatever it is.
WITH logged AS (
    INSERT INTO registry.audit (request_id, principal, issuer, project, kind, name, operation, before, after)
    SELECT $3, $4, $5, $1, 'infra', $1, 'update',
        '{"sha256":"' || encode(sha256(p.infra), 'hex') || '"}', '{"sha256":"' || encode(sha256($2), 'hex') || '"}'
    FROM registry.project p WHERE p.name = $1 AND p.infra IS DISTINCT FROM $2
)
UPDATE registry.project SET infra = $2 WHERE name = $1;

-- Reading.

-- name: get_object
-- object_key, then materialization_pkey.
SELECT o.id, o.kind, o.proto AS content, o.created, o.updated, o.state, o.version,
    CASE WHEN o.kind IN ('featureView', 'streamFeatureView') THEN (
        SELECT string_agg(m.proto, '' ORDER BY m.position) FROM registry.materialization m WHERE m.object_id = o.id
    ) END AS intervals
FROM registry.object o WHERE o.project = $1 AND o.family = $2 AND o.parent = $3 AND o.name = $4;

-- name: get_rendered
-- object_key, then materialization_pkey.
SELECT o.id, o.kind, o.rendered AS content, o.created, o.updated, o.state, o.version,
    CASE WHEN o.kind IN ('featureView', 'streamFeatureView') THEN (
        SELECT string_agg(m.rendered, ',' ORDER BY m.position) FROM registry.materialization m WHERE m.object_id = o.id
    ) END AS intervals
FROM registry.object o WHERE o.project = $1 AND o.family = $2 AND o.parent = $3 AND o.name = $4;

-- name: get_views
-- object_key. Views of any kind by their names, without `meta`.
SELECT o.name, o.kind, o.proto FROM registry.object o
WHERE o.project = $1 AND o.family = 'featureView' AND o.parent = '' AND o.name = ANY($2::text[]);

-- name: get_projects
-- project_pkey.
SELECT p.name, p.uuid, p.infra, p.updated FROM registry.project p WHERE p.name = ANY($1::text[]) ORDER BY p.name;

-- name: get_versions
-- object_key, then version_pkey. $3 is how many, NULL for all, $4 how many to skip. A row without a number comes back for
-- a view that has none there.
SELECT o.kind, o.version = v.number AS active, v.number, v.id, v.created, '' :: bytea AS proto,
    (SELECT count(*) FROM registry.version c WHERE c.object_id = o.id) AS total
FROM registry.object o
LEFT JOIN LATERAL (
    SELECT * FROM registry.version w WHERE w.object_id = o.id ORDER BY w.number LIMIT $3 OFFSET $4
) v ON true
WHERE o.project = $1 AND o.family = 'featureView' AND o.parent = '' AND o.name = $2
ORDER BY v.number;

-- name: get_version
-- object_key, then version_pkey. A row without a number comes back for a view that does not have the version.
SELECT o.kind, o.version = v.number AS active, v.number, v.id, v.created, v.proto
FROM registry.object o LEFT JOIN registry.version v ON v.object_id = o.id AND v.number = $3
WHERE o.project = $1 AND o.family = 'featureView' AND o.parent = '' AND o.name = $2;

-- The parts of lists. listing.py joins them by the tables there; nothing that a caller sent is part of a text.

-- name: page_of_protos
SELECT o.kind, o.project, o.name, o.proto AS content, o.created, o.updated, o.state, o.version,
    CASE WHEN o.kind IN ('featureView', 'streamFeatureView') THEN (
        SELECT string_agg(m.proto, '' ORDER BY m.position) FROM registry.materialization m WHERE m.object_id = o.id
    ) END AS intervals
FROM registry.object o WHERE

-- name: page_rendered
-- Only views need more than their JSON, and a list of features is long.
SELECT o.kind, o.project, o.name, o.rendered AS content, o.state, o.version,
    CASE WHEN o.family = 'featureView' THEN o.created END AS created,
    CASE WHEN o.family = 'featureView' THEN o.updated END AS updated,
    CASE WHEN o.kind IN ('featureView', 'streamFeatureView') THEN (
        SELECT string_agg(m.rendered, ',' ORDER BY m.position) FROM registry.materialization m WHERE m.object_id = o.id
    ) END AS intervals
FROM registry.object o WHERE

-- name: with_bytes_before
-- In front of a page: each row tells how many bytes the rows before it have.
SELECT p.*, coalesce(sum(octet_length(p.content) + coalesce(octet_length(p.intervals), 0))
    OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before
FROM

-- name: count_objects
SELECT count(*) FROM registry.object o WHERE

-- name: relationships
-- edge_source and edge_target, once for each name. For the objects of one type named in arrays (project, name): edges
-- that begin or end there, then the indirect ones. What a view is made from is indirectly used by the services that
-- select from the view; an entity of a view leads to the view's data sources.
WITH wanted AS (
    SELECT DISTINCT w.project, w.name FROM unnest($2::text[], $3::text[]) AS w (project, name)
),
direct AS (
    SELECT w.name AS about, e.project, e.source_type, e.source_name, e.target_type, e.target_name
    FROM wanted w
    JOIN registry.edge e ON e.source_type = $1 AND e.source_name = w.name AND e.project = w.project
    UNION
    SELECT w.name, e.project, e.source_type, e.source_name, e.target_type, e.target_name
    FROM wanted w
    JOIN registry.edge e ON e.target_type = $1 AND e.target_name = w.name AND e.project = w.project
),
indirect AS (
    -- From anything to the services behind the views that use it.
    SELECT w.name AS about, v.project, v.source_type, v.source_name, s.target_type, s.target_name
    FROM wanted w
    JOIN registry.edge v ON v.source_type = $1 AND v.source_name = w.name AND v.project = w.project
        AND v.target_type IN ('featureView', 'labelView')
    JOIN registry.edge s ON s.source_type = v.target_type AND s.source_name = v.target_name AND s.project = v.project
        AND s.target_type = 'featureService'
    UNION
    -- From a service back to what its views are made from.
    SELECT w.name, s.project, v.source_type, v.source_name, s.target_type, s.target_name
    FROM wanted w
    JOIN registry.edge s ON s.target_type = 'featureService' AND s.target_name = w.name AND s.project = w.project
    JOIN registry.edge v ON v.target_type = s.source_type AND v.target_name = s.source_name AND v.project = s.project
    WHERE $1 = 'featureService'
    UNION
    -- Between entities and data sources of the same view.
    SELECT w.name, e.project, e.source_type, e.source_name, d.source_type, d.source_name
    FROM wanted w
    JOIN registry.edge e ON e.source_type = 'entity' AND e.source_name = w.name AND e.project = w.project
    JOIN registry.edge d ON d.target_type = e.target_type AND d.target_name = e.target_name AND d.project = e.project
        AND d.source_type = 'dataSource'
    WHERE $1 = 'entity'
    UNION
    SELECT w.name, e.project, e.source_type, e.source_name, d.source_type, d.source_name
    FROM wanted w
    JOIN registry.edge d ON d.source_type = 'dataSource' AND d.source_name = w.name AND d.project = w.project
    JOIN registry.edge e ON e.target_type = d.target_type AND e.target_name = d.target_name AND e.project = d.project
        AND e.source_type = 'entity'
    WHERE $1 = 'dataSource'
)
SELECT about, project, source_type, source_name, target_type, target_name, 0 AS indirect FROM direct
UNION ALL
SELECT about, project, source_type, source_name, target_type, target_name, 1 FROM indirect
ORDER BY project, about, indirect, target_type, target_name, source_type, source_name;

-- Lineage of whole projects: parts that lineage.py joins. $1 names the projects; $2 and $3, unless empty, are the type
-- and the name of an object at either end.

-- name: project_names
-- project_pkey.
SELECT name FROM registry.project ORDER BY name;

-- name: direct_edges
-- edge_by_project. An object owns the edges that lead to it, and repeats none.
SELECT e.project, e.target_type, e.target_name, e.source_type, e.source_name
FROM registry.edge e
WHERE e.project = ANY($1::text[]) AND (
    (($2::text = '' OR e.source_type = $2) AND ($3::text = '' OR e.source_name = $3))
    OR (($2 = '' OR e.target_type = $2) AND ($3 = '' OR e.target_name = $3))
)

-- name: page_of_edges_as_json
-- Around a page of one of the two: the edges of a project as elements of a JSON array, in the order in which they come.
SELECT string_agg(registry.edge_json(e.source_type, e.source_name, e.target_type, e.target_name), ',') AS content

-- name: indirect_edges
-- edge_by_project. What the views of a service are made from leads to the service; the entities of a view lead to its
-- data sources.
SELECT e.project, e.target_type, e.target_name, e.source_type, e.source_name
FROM (
    SELECT s.project, s.target_type, s.target_name, v.source_type, v.source_name
    FROM registry.edge s
    JOIN registry.edge v ON v.project = s.project AND v.target_type = s.source_type AND v.target_name = s.source_name
    WHERE s.project = ANY($1::text[]) AND s.target_type = 'featureService'
    UNION
    SELECT e.project, d.source_type, d.source_name, e.source_type, e.source_name
    FROM registry.edge e
    JOIN registry.edge d ON d.project = e.project AND d.target_type = e.target_type AND d.target_name = e.target_name
    WHERE e.project = ANY($1::text[]) AND e.source_type = 'entity' AND d.source_type = 'dataSource'
) e
WHERE (($2::text = '' OR e.source_type = $2) AND ($3::text = '' OR e.source_name = $3))
    OR (($2 = '' OR e.target_type = $2) AND ($3 = '' OR e.target_name = $3))

-- name: direct_edges_by_target
-- edge_by_project. All edges of projects $1, a row for each target: how many, and their JSON. They are sorted for each target
-- by itself, because there are few to each.
SELECT e.project, count(*) AS edges, string_agg(
    registry.edge_json(e.source_type, e.source_name, e.target_type, e.target_name), ','
    ORDER BY e.source_type, e.source_name
) AS content
FROM registry.edge e WHERE e.project = ANY($1::text[])
GROUP BY e.project, e.target_type, e.target_name ORDER BY e.project, e.target_type, e.target_name;

-- name: indirect_edges_by_source
-- edge_source, edge_by_project. The same of the indirect edges that lead to data sources.
SELECT p.project, count(*) AS edges, string_agg(
    registry.edge_json('entity', p.entity, 'dataSource', p.source), ',' ORDER BY p.entity
) AS content
FROM (
    SELECT DISTINCT e.project, e.source_name AS entity, d.source_name AS source
    FROM registry.edge e
    JOIN registry.edge d ON d.project = e.project AND d.target_type = e.target_type AND d.target_name = e.target_name
    WHERE e.project = ANY($1::text[]) AND e.source_type = 'entity' AND d.source_type = 'dataSource'
) p
GROUP BY p.project, p.source ORDER BY p.project, p.source;

-- name: indirect_edges_by_service
-- edge_by_project. The same of those that lead to feature services, which come after data sources.
SELECT s.project, l.edges, l.content
FROM (
    SELECT DISTINCT e.project, e.target_name AS name
    FROM registry.edge e WHERE e.project = ANY($1::text[]) AND e.target_type = 'featureService'
) s
CROSS JOIN LATERAL (
    SELECT count(*) AS edges, string_agg(
        registry.edge_json(d.source_type, d.source_name, 'featureService', s.name), ','
        ORDER BY d.source_type, d.source_name
    ) AS content
    FROM (
        SELECT DISTINCT v.source_type, v.source_name
        FROM registry.edge u
        JOIN registry.edge v ON v.project = u.project AND v.target_type = u.source_type
            AND v.target_name = u.source_name
        WHERE u.project = s.project AND u.target_type = 'featureService' AND u.target_name = s.name
    ) d
    HAVING count(*) > 0
) l
ORDER BY s.project, s.name;

-- name: covered_by_permissions
-- object_key, then object_updated. For permissions named in arrays (project, name): the objects that each speaks of, the
-- $3 that changed last.
SELECT p.project, p.name AS about, c.kind, c.name
FROM unnest($1::text[], $2::text[]) w (project, name)
JOIN registry.object p ON p.project = w.project AND p.family = 'permission' AND p.parent = '' AND p.name = w.name
CROSS JOIN LATERAL (SELECT convert_from(p.rendered, 'UTF8')::jsonb -> 'spec' AS spec) s
CROSS JOIN LATERAL (
    SELECT
        (SELECT array_agg(t) FROM jsonb_array_elements_text(s.spec -> 'types') t) AS types,
        (SELECT array_agg('^(?:' || n || ')$') FROM jsonb_array_elements_text(s.spec -> 'namePatterns') n) AS patterns,
        coalesce(s.spec -> 'requiredTags', '{}') AS tags
) r
CROSS JOIN LATERAL (
    SELECT n.kind, n.name, n.updated, n.id
    FROM unnest($4::text[]) k (kind)
    CROSS JOIN LATERAL (
        SELECT o.kind, o.name, o.updated, o.id FROM registry.object o
        WHERE o.kind = k.kind AND o.project = p.project
            AND (r.types IS NULL OR r.types && registry.types_of(o.kind, o.rendered))
            AND (r.patterns IS NULL OR o.name ~ ANY (r.patterns))
            AND o.tags @> r.tags
        ORDER BY o.updated DESC LIMIT $3
    ) n
    ORDER BY n.updated DESC, n.id DESC LIMIT $3
) c
ORDER BY p.project, p.name, c.kind, c.name;

-- Data sources of an entity's views: $1 names the project, $2 the entity.

-- name: count_sources_of_entity
-- entity_source_pkey or entity_source_newest; then, if $3, object_key. Whoever does not read everything ($3) learns of what
-- it reads, no more.
SELECT count(*)
FROM registry.entity_source s
WHERE s.project = $1 AND s.entity = $2 AND (NOT $3::boolean OR EXISTS (
    SELECT FROM registry.object o
    WHERE o.project = s.project AND o.family = 'dataSource' AND o.parent = '' AND o.name = s.source
));

-- name: newest_sources_of_entity
-- entity_source_newest, then object_key. JSON of the $3 that came to the entity last; one that further views take up keeps
-- its place. OFFSET 0 keeps PostgreSQL from reading all data sources of the project: it does not know that some entities
-- have few and some have very many.
SELECT o.rendered
FROM registry.entity_source s
CROSS JOIN LATERAL (
    SELECT o.rendered FROM registry.object o
    WHERE o.project = $1 AND o.family = 'dataSource' AND o.parent = '' AND o.name = s.source OFFSET 0
) o
WHERE s.project = $1 AND s.entity = $2
ORDER BY s.id DESC LIMIT $3;

-- name: search_settings
-- For one transaction: how similar is similar, and that what follows is planned for its own pattern. A plan for any pattern
-- takes any to match much, and reads without the trigram index; one for a small registry reads all of that, because to
-- compare texts seems to cost nothing.
SELECT set_config('pg_trgm.word_similarity_threshold', $1, true), set_config('plan_cache_mode', 'force_custom_plan', true),
    set_config('enable_seqscan', 'off', true);

-- Search. $1 names the projects, $2 the kinds, $3 is the filter by tags.

-- name: search_everything
-- object_by_name.
SELECT o.kind, o.project, o.name, o.parent, o.description, o.tags, o.sort_name, o.id, 0 AS score,
    CASE WHEN o.kind IN ('onDemandFeatureView', 'streamFeatureView') THEN 'featureView' ELSE o.kind END AS type
FROM registry.object o
WHERE o.project = ANY($1::text[]) AND o.kind = ANY($2::text[]) AND o.tags @> $3::jsonb

-- name: search_similar
-- object_search. $4 is the query, $5 its pattern: what resembles it without holding it, most similar first. IS TRUE keeps
-- PostgreSQL from indexes that leave more texts to be compared.
SELECT o.id, o.name, o.tags FROM registry.object o
WHERE (o.project = ANY($1::text[]) AND o.kind = ANY($2::text[]) AND o.tags @> $3::jsonb) IS TRUE
    AND o.search_text %> $4::text AND o.search_text NOT LIKE $5::text
ORDER BY greatest(similarity(o.sort_name, $4), word_similarity($4, registry.tag_text(o.tags))) DESC, o.id
LIMIT 100;

-- name: search_matching
-- object_search, then edge_source and object_pkey. $4 is a pattern, $5 the ids of objects that resemble the query. The
-- JSON of a service is read once, however many of its views' features match. What matches is looked up one by one: joined,
-- a registry without statistics is read once for each match.
WITH used AS MATERIALIZED (
    SELECT f.parent, f.name, e.object_id
    FROM registry.object f
    JOIN registry.edge e ON e.source_type IN ('featureView', 'labelView') AND e.source_name = f.parent
        AND e.project = f.project AND e.target_type = 'featureService'
    WHERE f.search_text LIKE $4 AND f.sort_name LIKE $4 AND f.project = ANY($1) AND f.parent_id IS NOT NULL
),
service AS MATERIALIZED (
    SELECT s.id, convert_from(s.rendered, 'UTF8')::jsonb #> '{spec,features}' AS selected
    FROM registry.object s WHERE s.id IN (SELECT u.object_id FROM used u)
),
hit AS (
    SELECT o.id, CASE
        WHEN o.sort_name LIKE $4::text THEN 100
        WHEN lower(o.description) LIKE $4 THEN 80
        WHEN registry.tag_text(o.tags) LIKE $4 THEN 60
    END AS score
    FROM registry.object o WHERE o.search_text LIKE $4 AND o.project = ANY($1::text[])
    UNION ALL
    SELECT f.parent_id, 50
    FROM registry.object f
    WHERE f.search_text LIKE $4 AND f.sort_name LIKE $4 AND f.project = ANY($1) AND f.parent_id IS NOT NULL
    UNION ALL
    SELECT s.id, 50
    FROM used u
    JOIN service s ON s.id = u.object_id
    WHERE s.selected @> jsonb_build_array(jsonb_build_object(
        'featureViewName', u.parent, 'featureColumns', jsonb_build_array(jsonb_build_object('name', u.name))
    ))
    UNION ALL
    SELECT unnest($5::bigint[]), 40
),
best AS (
    SELECT h.id, max(h.score) AS score FROM hit h WHERE h.score IS NOT NULL GROUP BY h.id
)
SELECT o.kind, o.project, o.name, o.parent, o.description, o.tags, o.sort_name, o.id, b.score,
    CASE WHEN o.kind IN ('onDemandFeatureView', 'streamFeatureView') THEN 'featureView' ELSE o.kind END AS type
FROM best b
CROSS JOIN LATERAL (
    SELECT o.kind, o.project, o.name, o.parent, o.description, o.tags, o.sort_name, o.id
    FROM registry.object o WHERE o.id = b.id OFFSET 0
) o
WHERE o.project = ANY($1) AND o.kind = ANY($2::text[]) AND o.tags @> $3::jsonb

-- Counts.

-- name: tallies
-- tally_pkey.
SELECT t.project, t.kind, t.objects FROM registry.tally t WHERE t.project = ANY($1::text[]) AND t.objects > 0;

-- name: last_update
-- project_pkey.
SELECT max(p.updated) FROM registry.project p WHERE p.name = ANY($1::text[]);

-- name: newest_anywhere
-- object_newest, then object_of_parent. $1 are kinds, $2 is how many.
SELECT n.project, n.name, n.type, n.description,
    (SELECT count(*) FROM registry.object f WHERE f.parent_id = n.id) AS features
FROM unnest($1::text[]) k (kind)
CROSS JOIN LATERAL (
    SELECT o.* FROM registry.object o WHERE o.kind = k.kind ORDER BY o.updated DESC LIMIT $2
) n
ORDER BY n.updated DESC, n.id DESC LIMIT $2;

-- name: newest_in_project
-- object_updated, then object_of_parent. $1 are kinds, $2 is how many, $3 the project.
SELECT n.project, n.name, n.type, n.description,
    (SELECT count(*) FROM registry.object f WHERE f.parent_id = n.id) AS features
FROM unnest($1::text[]) k (kind)
CROSS JOIN LATERAL (
    SELECT o.* FROM registry.object o WHERE o.kind = k.kind AND o.project = $3 ORDER BY o.updated DESC LIMIT $2
) n
ORDER BY n.updated DESC, n.id DESC LIMIT $2;

-- name: popular_tags
-- view_by_name. $1 are projects, $2 is how many tags, $3 how many views of each.
WITH tagged AS (
    SELECT t.key COLLATE "C" AS key, t.value COLLATE "C" AS value, o.id, o.project, o.name, o.updated
    FROM registry.object o CROSS JOIN LATERAL jsonb_each_text(o.tags) t
    WHERE o.kind IN ('featureView', 'onDemandFeatureView', 'streamFeatureView') AND o.project = ANY($1::text[])
),
counted AS (
    SELECT t.key, t.value, count(*) AS views FROM tagged t GROUP BY t.key, t.value
),
popular AS (
    SELECT c.*, count(*) OVER () AS tags FROM counted c ORDER BY c.views DESC, c.key DESC, c.value DESC LIMIT $2
)
SELECT p.key, p.value, p.views, p.tags, v.project, v.name
FROM popular p
CROSS JOIN LATERAL (
    SELECT t.project, t.name FROM tagged t WHERE t.key = p.key AND t.value = p.value
    ORDER BY t.updated DESC, t.id DESC LIMIT $3
) v
ORDER BY p.views DESC, p.key DESC, p.value DESC, v.project, v.name;

-- Visits.

-- name: put_visits
-- project_pkey. Visits to projects that are gone are left out, and no other one goes while it is written.
INSERT INTO registry.visit (principal, project, object, object_name, path, method, visited)
SELECT v.principal, v.project, v.object, v.object_name, v.path, v.method, v.visited
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
    AS v (principal, project, object, object_name, path, method, visited)
JOIN registry.project p ON p.name = v.project
FOR KEY SHARE OF p;

-- name: trim_visits
-- visit_newest. Of each principal and project named in arrays the newest $3 stay. What another process is trimming at
-- this moment is left to it.
DELETE FROM registry.visit WHERE id IN (
    SELECT old.id
    FROM unnest($1::text[], $2::text[]) AS owner (principal, project)
    CROSS JOIN LATERAL (
        SELECT v.id FROM registry.visit v
        WHERE v.principal = owner.principal AND v.project = owner.project
        ORDER BY v.visited DESC, v.id DESC OFFSET $3
        FOR UPDATE SKIP LOCKED
    ) old
);

-- name: visits
-- visit_newest, then project_pkey. Those of a principal: a few in each project, if the caller may read the project.
SELECT v.principal, v.project, v.object, v.object_name, v.path, v.method, v.visited
FROM registry.visit v JOIN registry.project p ON p.name = v.project
WHERE v.principal = $1 AND ($2::text = '' OR v.project = $2) AND ($3::text = '' OR v.object = $3)
