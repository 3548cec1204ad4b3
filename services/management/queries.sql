-- Lists: the first columns of the result are `total`, the count of all pages, then the row; one row of nulls stands for
-- an empty page. They sort what their filters leave, which is a project's worth of objects and needs no index of its own.

-- name: instance
-- Primary key.
SELECT created_at FROM management.instance;

-- name: insert_datasource
INSERT INTO management.datasource (name, workspace_id, type, uri, config, config_sealed)
VALUES ($1, $2, $3, $4, $5, $6) RETURNING id;

-- name: datasource
-- Primary key.
SELECT * FROM management.datasource WHERE id = $1;

-- name: datasource_by_name
-- datasource_name_key.
SELECT * FROM management.datasource WHERE name = $1;

-- name: share_datasource
-- Primary key. Keeps it from being deleted until the transaction ends.
SELECT * FROM management.datasource WHERE id = $1 FOR KEY SHARE;

-- name: lock_datasource
-- Primary key.
SELECT * FROM management.datasource WHERE id = $1 FOR UPDATE;

-- name: list_datasources
-- Sequential: an instance has a handful.
WITH matching AS (
    SELECT * FROM management.datasource
    WHERE ($1::text = '' OR strpos(name, $1) > 0) AND ($2::text = '' OR type = $2) AND ($3::text = '' OR workspace_id = $3)
), page AS (
    SELECT *, row_number() OVER (
        ORDER BY extract(epoch FROM CASE $4::text WHEN 'GmtModifiedTime' THEN modified_at ELSE created_at END) * $5::int, id * $5
    ) AS position
    FROM matching ORDER BY position LIMIT $6 OFFSET $7
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY position;

-- name: update_datasource
-- Primary key.
UPDATE management.datasource SET name = $2, uri = $3, config = $4, config_sealed = $5, modified_at = now() WHERE id = $1;

-- name: sealed_configs
-- Primary key. Those after $1 that are encrypted, at most $2.
SELECT id, config_sealed FROM management.datasource
WHERE id > $1 AND config_sealed IS NOT NULL ORDER BY id LIMIT $2;

-- name: reseal_config
-- Primary key. Nothing if it has changed meanwhile.
UPDATE management.datasource SET config_sealed = $3 WHERE id = $1 AND config_sealed = $2;

-- name: delete_datasource
-- Primary key; the foreign keys look at project_*_datasource, feature_view_register_datasource, label_table_datasource.
DELETE FROM management.datasource WHERE id = $1 RETURNING 1;

-- name: insert_project
INSERT INTO management.project
    (name, feature_store, workspace_id, description, offline_datasource_id, offline_life_cycle, online_datasource_id, owner)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id;

-- name: project
-- Primary key.
SELECT * FROM management.project WHERE id = $1;

-- name: share_project
-- Primary key. Keeps it from being deleted until the transaction ends.
SELECT * FROM management.project WHERE id = $1 FOR KEY SHARE;

-- name: lock_project
-- Primary key.
SELECT id FROM management.project WHERE id = $1 FOR UPDATE;

-- name: locked_project
-- Primary key; feature_view_name_key.
SELECT p.*, EXISTS (SELECT FROM management.feature_view v WHERE v.project_id = p.id) AS has_views
FROM management.project p WHERE id = $1;

-- name: shown_projects
-- Primary key; counts by feature_entity_name_key, feature_view_name_key, model_feature_name_key.
SELECT p.*, f.name AS offline_name, f.type AS offline_type, n.name AS online_name, n.type AS online_type,
       (SELECT count(*) FROM management.feature_entity e WHERE e.project_id = p.id) AS entities,
       (SELECT count(*) FROM management.feature_view v WHERE v.project_id = p.id) AS views,
       (SELECT count(*) FROM management.model_feature m WHERE m.project_id = p.id) AS models
FROM management.project p
JOIN management.datasource f ON f.id = p.offline_datasource_id
JOIN management.datasource n ON n.id = p.online_datasource_id
WHERE p.id = ANY($1::bigint[]);

-- name: list_projects
-- project_name_key where stores are given.
WITH matching AS (
    SELECT * FROM management.project
    WHERE ($1::text[] IS NULL OR feature_store = ANY($1)) AND ($2::bigint[] = '{}' OR id = ANY($2))
      AND ($3::text = '' OR strpos(name, $3) > 0) AND ($4::text = '' OR owner = $4) AND ($5::text = '' OR workspace_id = $5)
), page AS (
    SELECT id, row_number() OVER (
        ORDER BY extract(epoch FROM CASE $6::text WHEN 'GmtModifiedTime' THEN modified_at ELSE created_at END) * $7::int, id * $7
    ) AS position
    FROM matching ORDER BY position LIMIT $8 OFFSET $9
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY position;

-- name: list_project_features
-- feature_view_name_key; selected_feature_view.
WITH uses AS (
    SELECT feature_view_id, name, count(DISTINCT model_feature_id) AS models,
           array_agg(DISTINCT alias_name ORDER BY alias_name) FILTER (WHERE alias_name <> '') AS aliases
    FROM management.selected_feature WHERE project_id = $1 AND name IS NOT NULL GROUP BY feature_view_id, name
), matching AS (
    SELECT v.id, v.name AS view_name, v.owner, v.created_at, v.modified_at, f.position AS field_position,
           f.field->>'name' AS name, f.field->>'type' AS type,
           coalesce(u.models, 0) AS models, coalesce(u.aliases, '{}') AS aliases
    FROM management.feature_view v
    CROSS JOIN LATERAL jsonb_array_elements(v.fields) WITH ORDINALITY AS f (field, position)
    LEFT JOIN uses u ON u.feature_view_id = v.id AND u.name = f.field->>'name'
    WHERE v.project_id = $1 AND NOT f.field->'attributes' ? 'Partition'
      AND ($2::text = '' OR strpos(f.field->>'name', $2) > 0)
      AND ($3::text = '' OR EXISTS (SELECT FROM unnest(u.aliases) AS alias WHERE strpos(alias, $3) > 0))
      AND ($4::bigint IS NULL OR v.id = $4) AND ($5::text = '' OR v.name = $5) AND ($6::text = '' OR v.owner = $6)
      AND ($7::text = '' OR f.field->>'type' = $7)
), page AS (
    SELECT *, row_number() OVER (
        ORDER BY CASE $8::text WHEN 'ModelFeatureCount' THEN models WHEN 'GmtModifiedTime' THEN extract(epoch FROM modified_at)
                 ELSE extract(epoch FROM created_at) END * $9::int, id * $9, field_position
    ) AS position
    FROM matching ORDER BY position LIMIT $10 OFFSET $11
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY position;

-- name: list_project_feature_views
-- feature_view_name_key; primary keys.
WITH page AS (
    SELECT v.id, v.name, v.type, v.fields, e.join_id, parent.join_id AS parent_join_id
    FROM management.feature_view v
    LEFT JOIN management.feature_entity e ON e.id = v.feature_entity_id
    LEFT JOIN management.feature_entity parent ON parent.id = e.parent_id
    WHERE v.project_id = $1 ORDER BY v.name LIMIT $2
)
SELECT (SELECT count(*) FROM management.feature_view WHERE project_id = $1) AS total, page.*
FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY page.name;

-- name: update_project
-- Primary key.
UPDATE management.project SET name = $2, feature_store = $3, description = $4, modified_at = now() WHERE id = $1;

-- name: delete_project
-- Primary key; the foreign keys look at the name keys of entity, view, label table and model feature.
DELETE FROM management.project WHERE id = $1;

-- name: insert_feature_entity
INSERT INTO management.feature_entity (project_id, name, join_id, parent_id, owner)
VALUES ($1, $2, $3, $4, $5) RETURNING id;

-- name: share_feature_entity
-- feature_entity_id_in_project. Keeps it from being deleted until the transaction ends.
SELECT * FROM management.feature_entity WHERE project_id = $1 AND id = $2 FOR KEY SHARE;

-- name: feature_entity
-- Primary keys.
SELECT e.*, p.name AS project_name, p.feature_store, p.workspace_id, parent.name AS parent_name, parent.join_id AS parent_join_id
FROM management.feature_entity e
JOIN management.project p ON p.id = e.project_id
LEFT JOIN management.feature_entity parent ON parent.id = e.parent_id
WHERE e.id = $1;

-- name: feature_entity_by_name
-- feature_entity_name_key.
SELECT id, name, join_id FROM management.feature_entity WHERE project_id = $1 AND name = $2;

-- name: list_feature_entities
-- feature_entity_name_key where a project is given, feature_entity_parent where a parent is.
WITH matching AS (
    SELECT e.*, p.name AS project_name
    FROM management.feature_entity e JOIN management.project p ON p.id = e.project_id
    WHERE ($1::text[] IS NULL OR p.feature_store = ANY($1)) AND ($2::bigint[] = '{}' OR e.id = ANY($2))
      AND ($3::text = '' OR strpos(e.name, $3) > 0) AND ($4::text = '' OR e.owner = $4)
      AND ($5::bigint IS NULL OR e.project_id = $5)
      AND ($6::bigint IS NULL OR e.parent_id = $6 OR $6 = 0 AND e.parent_id IS NULL)
), page AS (
    SELECT m.*, parent.name AS parent_name, parent.join_id AS parent_join_id, row_number() OVER (
        ORDER BY extract(epoch FROM CASE WHEN $7::text = 'GmtCreateTime' THEN m.created_at END) * $8::int, m.id * $8
    ) AS position
    FROM matching m LEFT JOIN management.feature_entity parent ON parent.id = m.parent_id
    ORDER BY position LIMIT $9 OFFSET $10
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY position;

-- name: delete_feature_entity
-- Primary key; the foreign keys look at feature_entity_parent and feature_view_entity.
DELETE FROM management.feature_entity WHERE id = $1;

-- name: insert_feature_view
INSERT INTO management.feature_view
    (project_id, feature_entity_id, name, type, write_method, register_table, register_datasource_id, sync_online_table,
     write_to_featuredb, ttl, tags, config, fields, owner, referenced_view_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING id;

-- name: feature_view
-- Primary keys.
SELECT v.*, p.name AS project_name, p.feature_store, p.offline_datasource_id, p.offline_life_cycle,
       p.online_datasource_id, online.type AS online_type, e.name AS entity_name, e.join_id, d.name AS register_datasource_name,
       r.name AS referenced_name, r.config AS referenced_config, r.fields AS referenced_fields,
       r.write_to_featuredb AS referenced_write_to_featuredb, r.register_table AS referenced_register_table,
       r.register_datasource_id AS referenced_register_datasource_id
FROM management.feature_view v
LEFT JOIN management.feature_view r ON r.id = v.referenced_view_id
JOIN management.project p ON p.id = v.project_id
JOIN management.datasource online ON online.id = p.online_datasource_id
LEFT JOIN management.feature_entity e ON e.id = v.feature_entity_id
LEFT JOIN management.datasource d ON d.id = v.register_datasource_id
WHERE v.id = $1;

-- name: share_feature_views
-- feature_view_id_in_project. Keeps them from being deleted until the transaction ends.
SELECT id, name, type, fields, config FROM management.feature_view WHERE project_id = $1 AND id = ANY($2::bigint[]) ORDER BY id FOR KEY SHARE;

-- name: share_referenced_view
-- feature_view_id_in_project. Keeps it from being deleted until the transaction ends.
SELECT v.*, online.type AS online_type, e.join_id FROM management.feature_view v
JOIN management.project p ON p.id = v.project_id
JOIN management.datasource online ON online.id = p.online_datasource_id
LEFT JOIN management.feature_entity e ON e.id = v.feature_entity_id
WHERE v.project_id = $1 AND v.id = $2 FOR KEY SHARE OF v;

-- name: lock_feature_view
-- Primary key.
SELECT id FROM management.feature_view WHERE id = $1 FOR UPDATE;

-- name: locked_feature_view
-- Primary key; task_feature_view.
SELECT v.*, (
    SELECT min(t.id) FROM management.task t WHERE t.feature_view_id = v.id AND t.status IN ('Initializing', 'Running')
) AS active_task, EXISTS (
    SELECT FROM management.task t WHERE t.feature_view_id = v.id AND t.type = 'OfflineToOnline' AND t.executed_at IS NOT NULL
) OR v.written_online AS was_published
FROM management.feature_view v WHERE v.id = $1;

-- name: mark_written_online
-- Primary key.
UPDATE management.feature_view SET written_online = true WHERE id = $1 AND NOT written_online;

-- name: share_feature_view
-- Primary key. Keeps it from being deleted and its fields from being changed until the transaction ends.
SELECT id FROM management.feature_view WHERE id = $1 FOR KEY SHARE;

-- name: hold_feature_view
-- Primary key. As share_feature_view, and one at a time; who refers to it does not wait.
SELECT id FROM management.feature_view WHERE id = $1 FOR NO KEY UPDATE;

-- name: list_feature_views
-- feature_view_name_key where a project is given.
WITH matching AS (
    SELECT v.id, v.name, v.type, v.project_id, v.feature_entity_id, v.register_table, v.register_datasource_id,
           v.write_to_featuredb, v.ttl, v.owner, v.created_at, v.modified_at, p.name AS project_name
    FROM management.feature_view v JOIN management.project p ON p.id = v.project_id
    WHERE ($1::text[] IS NULL OR p.feature_store = ANY($1)) AND ($2::bigint[] = '{}' OR v.id = ANY($2))
      AND ($3::text = '' OR strpos(v.name, $3) > 0) AND ($4::text = '' OR v.owner = $4)
      AND ($5::bigint IS NULL OR v.project_id = $5) AND ($6::text = '' OR v.type = $6)
      AND ($7::text = '' OR $7 = ANY(v.tags)) AND ($8::jsonb IS NULL OR v.fields @> $8)
), page AS (
    SELECT m.*, e.name AS entity_name, d.name AS register_datasource_name, row_number() OVER (
        ORDER BY extract(epoch FROM CASE $9::text WHEN 'GmtModifiedTime' THEN m.modified_at ELSE m.created_at END) * $10::int,
                 m.id * $10
    ) AS position
    FROM matching m
    LEFT JOIN management.feature_entity e ON e.id = m.feature_entity_id
    LEFT JOIN management.datasource d ON d.id = m.register_datasource_id
    ORDER BY position LIMIT $11 OFFSET $12
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY position;

-- name: list_datasource_feature_views
-- Primary keys; project_online_datasource, project_offline_datasource and feature_view_register_datasource.
SELECT v.id, v.name, v.type, v.config, v.ttl, v.created_at, v.modified_at,
       p.name AS project_name, p.feature_store, e.name AS entity_name,
       p.online_datasource_id, online.type AS online_type, v.write_to_featuredb,
       p.online_datasource_id = d.id AND NOT v.write_to_featuredb
       OR d.type = 'FeatureDB' AND (v.write_to_featuredb OR p.online_datasource_id = d.id) AS online_here
FROM management.feature_view v
JOIN management.project p ON p.id = v.project_id
JOIN management.datasource d ON d.id = $1
JOIN management.datasource online ON online.id = p.online_datasource_id
LEFT JOIN management.feature_entity e ON e.id = v.feature_entity_id
WHERE (p.online_datasource_id = d.id OR coalesce(v.register_datasource_id, p.offline_datasource_id) = d.id
       OR v.write_to_featuredb AND d.type = 'FeatureDB')
  AND ($2::text[] IS NULL OR p.feature_store = ANY($2)) AND ($3::text = '' OR strpos(v.name, $3) > 0)
  AND ($4::bigint IS NULL OR p.id = $4) AND ($5::text = '' OR strpos(p.name, $5) > 0) AND ($6::text = '' OR v.type = $6)
ORDER BY extract(epoch FROM CASE $7::text WHEN 'GmtModifiedTime' THEN v.modified_at ELSE v.created_at END) * $8::int, v.id * $8
LIMIT $9;

-- name: models_of_view
-- selected_feature_view; primary key. One row for each use of the view, or of one of its fields.
SELECT m.id, m.name, s.alias_name
FROM management.selected_feature s JOIN management.model_feature m ON m.id = s.model_feature_id
WHERE s.project_id = $1 AND s.feature_view_id = $2 AND ($3::text IS NULL OR s.name = $3)
ORDER BY m.id, s.position;

-- name: update_feature_view_fields
-- Primary key.
UPDATE management.feature_view SET fields = $2, modified_at = now() WHERE id = $1;

-- name: delete_feature_view
-- Primary key; the foreign keys look at selected_feature_view, feature_view_referenced and task_feature_view.
DELETE FROM management.feature_view WHERE id = $1;

-- name: mark_synced
-- Primary key.
UPDATE management.feature_view SET last_sync_config = $2, synced_at = now() WHERE id = $1;

-- name: insert_label_table
INSERT INTO management.label_table (project_id, datasource_id, name, fields, owner)
VALUES ($1, $2, $3, $4, $5) RETURNING id;

-- name: share_label_table
-- label_table_id_in_project. Keeps it from being deleted until the transaction ends.
SELECT * FROM management.label_table WHERE project_id = $1 AND id = $2 FOR KEY SHARE;

-- name: lock_label_table
-- Primary key.
SELECT * FROM management.label_table WHERE id = $1 FOR UPDATE;

-- name: label_table
-- Primary keys; model_feature_label_table.
SELECT l.*, p.name AS project_name, p.feature_store, d.name AS datasource_name,
       ARRAY(
           SELECT m.name FROM management.model_feature m
           WHERE m.project_id = l.project_id AND m.label_table_id = l.id ORDER BY m.name
       ) AS models
FROM management.label_table l
JOIN management.project p ON p.id = l.project_id
JOIN management.datasource d ON d.id = l.datasource_id
WHERE l.id = $1;

-- name: list_label_tables
-- label_table_name_key where a project is given.
WITH matching AS (
    SELECT l.id, l.name, l.project_id, l.datasource_id, l.owner, l.created_at, l.modified_at, p.name AS project_name
    FROM management.label_table l JOIN management.project p ON p.id = l.project_id
    WHERE ($1::text[] IS NULL OR p.feature_store = ANY($1)) AND ($2::bigint[] = '{}' OR l.id = ANY($2))
      AND ($3::text = '' OR strpos(l.name, $3) > 0) AND ($4::text = '' OR l.owner = $4)
      AND ($5::bigint IS NULL OR l.project_id = $5)
), page AS (
    SELECT m.*, d.name AS datasource_name, row_number() OVER (
        ORDER BY extract(epoch FROM CASE $6::text WHEN 'GmtModifiedTime' THEN m.modified_at ELSE m.created_at END) * $7::int,
                 m.id * $7
    ) AS position
    FROM matching m JOIN management.datasource d ON d.id = m.datasource_id
    ORDER BY position LIMIT $8 OFFSET $9
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY position;

-- name: update_label_table
-- Primary key.
UPDATE management.label_table SET datasource_id = $2, name = $3, fields = $4, modified_at = now() WHERE id = $1;

-- name: delete_label_table
-- Primary key; the foreign key looks at model_feature_label_table.
DELETE FROM management.label_table WHERE id = $1;

-- name: insert_model_feature
INSERT INTO management.model_feature (project_id, label_table_id, name, label_priority_level, owner)
VALUES ($1, $2, $3, $4, $5) RETURNING id;

-- name: insert_selected_features
INSERT INTO management.selected_feature
    (project_id, model_feature_id, position, feature_view_id, name, alias_name, prefix_name, type)
SELECT $1, $2, s.position, s.feature_view_id, s.name, s.alias_name, s.prefix_name, s.type
FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[]) WITH ORDINALITY
     AS s (feature_view_id, name, alias_name, prefix_name, type, position);

-- name: delete_selected_features
-- Primary key.
DELETE FROM management.selected_feature WHERE model_feature_id = $1;

-- name: lock_model_feature
-- Primary key.
SELECT id FROM management.model_feature WHERE id = $1 FOR UPDATE;

-- name: locked_model_feature
-- Primary key; task_object.
SELECT m.*, (
    SELECT min(t.id) FROM management.task t
    WHERE t.object_type = 'ModelFeature' AND t.object_id = m.id AND t.status IN ('Initializing', 'Running')
) AS active_task
FROM management.model_feature m WHERE m.id = $1;

-- name: model_feature
-- Primary keys.
SELECT m.*, p.name AS project_name, p.feature_store, p.offline_datasource_id, p.offline_life_cycle,
       l.name AS label_table_name, l.fields AS label_fields, l.datasource_id AS label_datasource_id
FROM management.model_feature m
JOIN management.project p ON p.id = m.project_id
JOIN management.label_table l ON l.id = m.label_table_id
WHERE m.id = $1;

-- name: selected_features
-- Primary keys.
SELECT s.*, v.name AS view_name, CASE WHEN s.name IS NULL THEN v.fields END AS view_fields,
       v.feature_entity_id, e.name AS entity_name, e.join_id
FROM management.selected_feature s
JOIN management.feature_view v ON v.id = s.feature_view_id
LEFT JOIN management.feature_entity e ON e.id = v.feature_entity_id
WHERE s.model_feature_id = $1 ORDER BY s.position;

-- name: views_of_model
-- Primary keys. Each view that a model feature takes from, in the order in which it first does.
SELECT v.*, p.name AS project_name, p.offline_datasource_id, e.name AS entity_name, e.join_id, e.parent_id,
       r.name AS referenced_name, r.config AS referenced_config, r.fields AS referenced_fields,
       r.write_to_featuredb AS referenced_write_to_featuredb, r.register_table AS referenced_register_table,
       r.register_datasource_id AS referenced_register_datasource_id
FROM (
    SELECT feature_view_id, min(position) AS position
    FROM management.selected_feature WHERE model_feature_id = $1 GROUP BY feature_view_id
) AS taken
JOIN management.feature_view v ON v.id = taken.feature_view_id
JOIN management.project p ON p.id = v.project_id
LEFT JOIN management.feature_entity e ON e.id = v.feature_entity_id
LEFT JOIN management.feature_view r ON r.id = v.referenced_view_id
ORDER BY taken.position;

-- name: list_model_features
-- model_feature_name_key where a project is given.
WITH matching AS (
    SELECT m.id, m.name, m.project_id, m.label_table_id, m.owner, m.created_at, m.modified_at, p.name AS project_name
    FROM management.model_feature m JOIN management.project p ON p.id = m.project_id
    WHERE ($1::text[] IS NULL OR p.feature_store = ANY($1)) AND ($2::bigint[] = '{}' OR m.id = ANY($2))
      AND ($3::text = '' OR strpos(m.name, $3) > 0) AND ($4::text = '' OR m.owner = $4)
      AND ($5::bigint IS NULL OR m.project_id = $5)
), page AS (
    SELECT m.*, l.name AS label_table_name, row_number() OVER (
        ORDER BY extract(epoch FROM CASE $6::text WHEN 'GmtModifiedTime' THEN m.modified_at ELSE m.created_at END) * $7::int,
                 m.id * $7
    ) AS position
    FROM matching m JOIN management.label_table l ON l.id = m.label_table_id
    ORDER BY position LIMIT $8 OFFSET $9
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY position;

-- name: update_model_feature
-- Primary key.
UPDATE management.model_feature SET label_table_id = $2, label_priority_level = $3, modified_at = now() WHERE id = $1;

-- name: update_model_feature_fg
-- Primary key.
UPDATE management.model_feature SET fg = $2, modified_at = now() WHERE id = $1 RETURNING id;

-- name: delete_model_feature
-- Primary key; its selected features go with it.
DELETE FROM management.model_feature WHERE id = $1;

-- name: insert_task
INSERT INTO management.task
    (type, object_type, object_id, project_id, project_name, feature_store, feature_view_id, config, request_id, owner)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id;

-- name: place_task
-- Primary key.
UPDATE management.task SET job_id = $2 WHERE id = $1;

-- name: task
-- Primary key.
SELECT * FROM management.task WHERE id = $1;

-- name: list_tasks
-- task_project where a project is given, task_object where an object is; else the primary key.
WITH matching AS (
    SELECT * FROM management.task
    WHERE ($1::text[] IS NULL OR feature_store = ANY($1)) AND ($2::bigint[] = '{}' OR id = ANY($2))
      AND ($3::bigint IS NULL OR project_id = $3) AND ($4::text = '' OR type = $4) AND ($5::text = '' OR status = $5)
      AND ($6::text = '' OR object_type = $6) AND ($7::bigint IS NULL OR object_id = $7)
), page AS (
    SELECT * FROM matching ORDER BY id DESC LIMIT $8 OFFSET $9
)
SELECT (SELECT count(*) FROM matching) AS total, page.* FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY page.id DESC;

-- name: list_task_logs
-- task_log_task.
WITH page AS (
    SELECT * FROM management.task_log WHERE task_id = $1 ORDER BY id LIMIT $2 OFFSET $3
)
SELECT (SELECT count(*) FROM management.task_log WHERE task_id = $1) AS total, page.*
FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY page.id;

-- name: insert_task_log
INSERT INTO management.task_log (task_id, message) VALUES ($1, $2);

-- name: prune_task_logs
-- Primary keys. Of the oldest thousand lines those that are old enough, so that it costs the same with nothing to do.
DELETE FROM management.task_log l
USING (SELECT id, task_id FROM management.task_log ORDER BY id LIMIT 1000) AS oldest
JOIN management.task t ON t.id = oldest.task_id
WHERE l.id = oldest.id AND t.finished_at < now() - make_interval(days => $1::int)
RETURNING l.id;

-- name: begin_task
-- Primary key. No row comes back for a task that has ended.
UPDATE management.task
SET status = 'Running', attempt = attempt + 1, rows_done = 0, executed_at = coalesce(executed_at, now()), modified_at = now()
WHERE id = $1 AND status IN ('Initializing', 'Running') RETURNING *;

-- name: advance_task
-- Primary key. No row comes back if the task has ended or another worker has taken it up.
UPDATE management.task SET rows_done = $3, rows_total = $4, running_config = $5, modified_at = now()
WHERE id = $1 AND attempt = $2 AND status = 'Running' RETURNING 1;

-- name: finish_task
-- Primary key. As advance_task.
UPDATE management.task SET status = $3, finished_at = now(), modified_at = now()
WHERE id = $1 AND attempt = $2 AND status = 'Running' RETURNING type, feature_view_id, config;

-- name: stop_task
-- Primary key. No row comes back for a task that has ended.
UPDATE management.task SET status = 'Failure', finished_at = now(), modified_at = now()
WHERE id = $1 AND status IN ('Initializing', 'Running') RETURNING job_id;

-- name: active_tasks
-- task_active.
SELECT t.status, count(*) AS tasks FROM management.task t WHERE t.status IN ('Initializing', 'Running') GROUP BY t.status;

-- name: lost_tasks
-- task_active; primary key of task_pgqueuer. Tasks that have not ended and are in no queue: there should be none.
SELECT t.id FROM management.task t
WHERE t.status IN ('Initializing', 'Running')
  AND NOT EXISTS (SELECT FROM management.task_pgqueuer q WHERE q.id = t.job_id)
ORDER BY t.id LIMIT 100 FOR UPDATE SKIP LOCKED;

-- name: lock_own_jobs
-- Primary key of task_pgqueuer. Those jobs that the given workers still have.
SELECT q.id FROM management.task_pgqueuer q
JOIN unnest($1::bigint[], $2::uuid[]) AS own (id, queue_manager_id) USING (id, queue_manager_id)
FOR UPDATE OF q;

-- name: add_usage
-- Primary keys. No row comes back for a batch that was added before.
WITH fresh AS (
    INSERT INTO management.usage_batch AS b (process, number) VALUES ($1, $2)
    ON CONFLICT (process) DO UPDATE SET number = excluded.number, added_at = now() WHERE b.number < excluded.number
    RETURNING 1
)
INSERT INTO management.usage AS u (month, account, operation, calls)
SELECT c.month, c.account, c.operation, c.calls
FROM unnest($3::date[], $4::text[], $5::text[], $6::bigint[]) WITH ORDINALITY
     AS c (month, account, operation, calls, position)
WHERE EXISTS (SELECT FROM fresh) ORDER BY c.position
ON CONFLICT (account, month, operation) DO UPDATE SET calls = u.calls + excluded.calls
RETURNING u.month, u.account, u.operation, u.calls;

-- name: usage_of_month
-- usage_month.
SELECT account, operation, calls FROM management.usage WHERE month = $1 ORDER BY calls DESC LIMIT $2;

-- name: list_usage
-- Primary key where an account is given, usage_month where a month is.
WITH matching AS (
    SELECT u.*, least(u.calls, t.free) AS free_calls, greatest(u.calls - t.free, 0) * t.price AS price
    FROM management.usage u, LATERAL (
        SELECT coalesce($4::jsonb->>u.operation, $4->>'*', '0')::bigint AS free,
               coalesce($5::jsonb->>u.operation, $5->>'*', '0')::numeric AS price
    ) AS t
    WHERE ($1::date IS NULL OR u.month = $1) AND ($2::text = '' OR u.account = $2) AND ($3::text = '' OR u.operation = $3)
), page AS (
    SELECT * FROM matching ORDER BY month DESC, account, operation LIMIT $6 OFFSET $7
), totals AS (
    SELECT count(*) AS total, coalesce(sum(calls), 0)::bigint AS total_calls, coalesce(sum(price), 0) AS total_price
    FROM matching
)
SELECT totals.*, page.* FROM totals LEFT JOIN page ON true ORDER BY page.month DESC, page.account, page.operation;

-- name: prune_usage
-- usage_month.
DELETE FROM management.usage WHERE month <= $1::date - make_interval(months => $2::int);

-- name: prune_usage_batches
-- Sequential: a row for each process that was started in the last days.
DELETE FROM management.usage_batch WHERE added_at < now() - interval '1 day';

-- name: keep_offline_file
-- Primary key. Noted before the file is shown, so that none is forgotten.
INSERT INTO management.offline_file (path, table_path, task_id, expires_at)
VALUES ($1, $2, $3, now() + make_interval(days => $4::int))
ON CONFLICT (path) DO UPDATE
SET table_path = excluded.table_path, task_id = excluded.task_id, expires_at = excluded.expires_at;

-- name: expired_offline_file
-- offline_file_expires. One that nobody else is at work on.
SELECT path, table_path, task_id FROM management.offline_file WHERE expires_at < $1
ORDER BY expires_at LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: forget_offline_file
-- Primary key.
DELETE FROM management.offline_file WHERE path = $1;

-- Documents: what the audit log shows of an object, without what changes by itself. Nobody else changes it until the
-- transaction ends.

-- name: audited_datasource
-- Primary key. Its secrets are masked in config; that they changed is seen by the hash of what is encrypted.
SELECT '' AS project, d.name, (
    to_jsonb(d) - '{config_sealed,modified_at}'::text[]
    || jsonb_build_object('config_sealed_sha256', encode(sha256(d.config_sealed), 'hex'))
)::text AS document
FROM management.datasource d WHERE d.id = $1 FOR UPDATE;

-- name: audited_project
-- Primary key.
SELECT p.name AS project, p.name, (to_jsonb(p) - 'modified_at')::text AS document
FROM management.project p WHERE p.id = $1 FOR UPDATE;

-- name: audited_feature_entity
-- Primary keys.
SELECT p.name AS project, e.name, to_jsonb(e)::text AS document
FROM management.feature_entity e JOIN management.project p ON p.id = e.project_id WHERE e.id = $1 FOR UPDATE OF e;

-- name: audited_feature_view
-- Primary keys.
SELECT p.name AS project, v.name,
    (to_jsonb(v) - '{last_sync_config,synced_at,written_online,modified_at}'::text[])::text AS document
FROM management.feature_view v JOIN management.project p ON p.id = v.project_id WHERE v.id = $1 FOR UPDATE OF v;

-- name: audited_label_table
-- Primary keys.
SELECT p.name AS project, l.name, (to_jsonb(l) - 'modified_at')::text AS document
FROM management.label_table l JOIN management.project p ON p.id = l.project_id WHERE l.id = $1 FOR UPDATE OF l;

-- name: audited_model_feature
-- Primary keys.
SELECT p.name AS project, m.name, (to_jsonb(m) - 'modified_at' || jsonb_build_object('features', (
    SELECT jsonb_agg(to_jsonb(s) - '{project_id,model_feature_id,position}'::text[] ORDER BY s.position)
    FROM management.selected_feature s WHERE s.model_feature_id = m.id
)))::text AS document
FROM management.model_feature m JOIN management.project p ON p.id = m.project_id WHERE m.id = $1 FOR UPDATE OF m;
