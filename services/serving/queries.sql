-- name: ensure_store
-- feature_store_name_key.
INSERT INTO serving.feature_store (name) VALUES ($1) ON CONFLICT (name) DO NOTHING;

-- name: store_exists
-- feature_store_name_key.
SELECT true FROM serving.feature_store WHERE name = $1;

-- name: insert_group
-- feature_store_name_key, then feature_group_name_version. No row comes back if the group exists.
INSERT INTO serving.feature_group (feature_store_id, name, version, description, event_time, time_to_live_ms)
SELECT s.id, $2, $3, $4, $5, $6 FROM serving.feature_store s WHERE s.name = $1
ON CONFLICT (feature_store_id, name, version) WHERE deleted_at IS NULL DO NOTHING
RETURNING id;

-- name: insert_features
INSERT INTO serving.feature (feature_group_id, position, name, type, description, key_position)
SELECT $1, * FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::int[]);

-- name: update_group
-- Primary key of feature_group.
UPDATE serving.feature_group SET description = $2, time_to_live_ms = $3 WHERE id = $1;

-- name: groups_by_name
-- feature_store_name_key, feature_group_name_version, primary key of feature. Name and version may be null: all.
SELECT g.id, s.name AS store, g.name, g.version, g.description, g.event_time, g.time_to_live_ms, g.generation,
       g.row_set_id, g.created_at, g.deleted_at,
       f.names, f.types, f.descriptions, f.key_positions
FROM serving.feature_store s
JOIN serving.feature_group g ON g.feature_store_id = s.id
CROSS JOIN LATERAL (
    SELECT array_agg(name ORDER BY position) AS names, array_agg(type ORDER BY position) AS types,
           array_agg(description ORDER BY position) AS descriptions,
           array_agg(key_position ORDER BY position) AS key_positions
    FROM serving.feature WHERE feature_group_id = g.id
) f
WHERE s.name = $1 AND g.deleted_at IS NULL
  AND ($2::text IS NULL OR g.name = $2) AND ($3::int IS NULL OR g.version = $3)
ORDER BY g.name, g.version;

-- name: groups_named
-- feature_store_name_key, feature_group_name_version, primary key of feature. Takes as many stores as names and versions.
SELECT g.id, s.name AS store, g.name, g.version, g.description, g.event_time, g.time_to_live_ms, g.generation,
       g.row_set_id, g.created_at, g.deleted_at,
       f.names, f.types, f.descriptions, f.key_positions
FROM unnest($1::text[], $2::text[], $3::int[]) AS named (store, name, version)
JOIN serving.feature_store s ON s.name = named.store
JOIN serving.feature_group g
  ON g.feature_store_id = s.id AND g.name = named.name AND g.version = named.version AND g.deleted_at IS NULL
CROSS JOIN LATERAL (
    SELECT array_agg(name ORDER BY position) AS names, array_agg(type ORDER BY position) AS types,
           array_agg(description ORDER BY position) AS descriptions,
           array_agg(key_position ORDER BY position) AS key_positions
    FROM serving.feature WHERE feature_group_id = g.id
) f;

-- name: lock_group
-- Primary key of feature_group. No row comes back if it was deleted.
SELECT row_set_id, generation FROM serving.feature_group WHERE id = $1 AND deleted_at IS NULL FOR UPDATE;

-- name: delete_group
-- Primary key of feature_group.
UPDATE serving.feature_group SET deleted_at = now(), row_set_id = NULL WHERE id = $1;

-- name: insert_row_set
INSERT INTO serving.row_set (feature_group_id, state) VALUES ($1, $2) RETURNING id;

-- name: touch_row_set
-- Primary key of row_set. No row comes back once somebody gave the load up for dead.
UPDATE serving.row_set SET due_at = now() WHERE id = $1 AND state = 'loading' RETURNING true;

-- name: row_set_is_live
-- Primary key of row_set.
SELECT true FROM serving.row_set WHERE id = $1 AND state = 'live';

-- name: row_set_to_live
-- Primary key of row_set. No row comes back once somebody gave the load up for dead.
UPDATE serving.row_set SET state = 'live' WHERE id = $1 AND state = 'loading' RETURNING true;

-- name: show_row_set
-- Primary key of feature_group.
UPDATE serving.feature_group SET row_set_id = $2, generation = generation + $3 WHERE id = $1 RETURNING generation;

-- name: retire_row_set
-- Primary key of row_set.
UPDATE serving.row_set SET state = 'retired', due_at = now() + make_interval(secs => $2) WHERE id = $1;

-- name: retire_row_sets_of_group
-- row_set_feature_group.
UPDATE serving.row_set SET state = 'retired', due_at = now() + make_interval(secs => $2)
WHERE feature_group_id = $1 AND state <> 'retired';

-- name: claim_row_set
-- row_set_due. One row set whose keys should go: retired and due, or loading by a writer not heard of for $1 seconds.
-- It is claimed for $2 seconds; whoever dies with it is followed by another.
UPDATE serving.row_set SET state = 'retired', due_at = now() + make_interval(secs => $2)
WHERE id = (
    SELECT id FROM serving.row_set
    WHERE state <> 'live' AND due_at <= now()
      AND (state = 'retired' OR due_at <= now() - make_interval(secs => $1))
    ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING id;

-- name: forget_row_set
-- Primary key of row_set.
DELETE FROM serving.row_set WHERE id = $1 AND state = 'retired';

-- name: insert_view
-- feature_store_name_key.
INSERT INTO serving.feature_view (feature_store_id, name, version, description)
SELECT s.id, $2, $3, $4 FROM serving.feature_store s WHERE s.name = $1
RETURNING id;

-- name: insert_view_join
INSERT INTO serving.view_join (feature_view_id, join_index, feature_group_id, prefix, left_columns, right_columns)
VALUES ($1, $2, $3, $4, $5, $6);

-- name: insert_view_features
INSERT INTO serving.view_feature (
    feature_view_id, position, join_index, name, label, inference_helper, training_helper
)
SELECT $1, * FROM unnest($2::int[], $3::int[], $4::text[], $5::boolean[], $6::boolean[], $7::boolean[]);

-- name: insert_serving_keys
INSERT INTO serving.serving_key (feature_view_id, position, join_index, feature_name, prefix, required, join_on)
SELECT $1, * FROM unnest($2::int[], $3::int[], $4::text[], $5::text[], $6::boolean[], $7::text[]);

-- name: views
-- feature_store_name_key, feature_view_name_version, primary keys of view_join, feature_group, feature, view_feature
-- and serving_key. Name and version may be null: all. One statement, so that all of it is of one moment: a row for each
-- join with its group, which may be deleted; features and serving keys are with the first.
SELECT v.id AS view_id, vs.name AS view_store, v.name AS view_name, v.version AS view_version,
       v.description AS view_description, v.created_at AS view_created_at,
       j.prefix, j.left_columns, j.right_columns,
       g.id, s.name AS store, g.name, g.version, g.description, g.event_time, g.time_to_live_ms, g.generation,
       g.row_set_id, g.created_at, g.deleted_at,
       f.names, f.types, f.descriptions, f.key_positions, vf.*, k.*
FROM serving.feature_store vs
JOIN serving.feature_view v ON v.feature_store_id = vs.id
JOIN serving.view_join j ON j.feature_view_id = v.id
JOIN serving.feature_group g ON g.id = j.feature_group_id
JOIN serving.feature_store s ON s.id = g.feature_store_id
CROSS JOIN LATERAL (
    SELECT array_agg(name ORDER BY position) AS names, array_agg(type ORDER BY position) AS types,
           array_agg(description ORDER BY position) AS descriptions,
           array_agg(key_position ORDER BY position) AS key_positions
    FROM serving.feature WHERE feature_group_id = g.id
) f
CROSS JOIN LATERAL (
    SELECT array_agg(join_index ORDER BY position) AS feature_joins, array_agg(name ORDER BY position) AS feature_names,
           array_agg(label ORDER BY position) AS labels,
           array_agg(inference_helper ORDER BY position) AS inference_helpers,
           array_agg(training_helper ORDER BY position) AS training_helpers
    FROM serving.view_feature WHERE j.join_index = 0 AND feature_view_id = v.id
) vf
CROSS JOIN LATERAL (
    SELECT array_agg(join_index ORDER BY position) AS key_joins, array_agg(feature_name ORDER BY position) AS key_names,
           array_agg(prefix ORDER BY position) AS key_prefixes, array_agg(required ORDER BY position) AS keys_required,
           array_agg(join_on ORDER BY position) AS keys_join_on
    FROM serving.serving_key WHERE j.join_index = 0 AND feature_view_id = v.id
) k
WHERE vs.name = $1 AND ($2::text IS NULL OR v.name = $2) AND ($3::int IS NULL OR v.version = $3)
ORDER BY v.name, v.version, j.join_index;

-- name: delete_view
-- feature_store_name_key, feature_view_name_version.
DELETE FROM serving.feature_view v USING serving.feature_store s
WHERE s.id = v.feature_store_id AND s.name = $1 AND v.name = $2 AND v.version = $3
RETURNING v.id;

-- name: add_usage
-- Primary keys of usage and feature_group. In one order, so that processes which add at the same time wait for each other
-- in a row. Of groups that are gone by now nothing is kept.
INSERT INTO serving.usage (feature_group_id, day, rows_read, rows_written)
SELECT g.id, (now() AT TIME ZONE 'UTC')::date, added.rows_read, added.rows_written
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS added (id, rows_read, rows_written)
JOIN serving.feature_group AS g ON g.id = added.id
ORDER BY g.id
FOR KEY SHARE OF g
ON CONFLICT (feature_group_id, day) DO UPDATE
SET rows_read = usage.rows_read + excluded.rows_read, rows_written = usage.rows_written + excluded.rows_written;

-- name: forget_usage
-- Primary key of usage.
DELETE FROM serving.usage
WHERE feature_group_id = ANY ($1::bigint[]) AND day <= (now() AT TIME ZONE 'UTC')::date - $2::int;

-- name: usage
-- Primary key of usage.
SELECT feature_group_id, day, rows_read, rows_written FROM serving.usage
WHERE feature_group_id = ANY($1::bigint[]) AND day > (now() AT TIME ZONE 'UTC')::date - $2::int
ORDER BY feature_group_id, day;

-- name: notify
-- Sent when the transaction commits.
SELECT pg_notify('serving', $1);
