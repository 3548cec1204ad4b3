-- What is defined (groups, views) and where the rows of each group are in Redis (row sets). Rows themselves never get here.
CREATE TABLE serving.feature_store (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL CONSTRAINT feature_store_name_key UNIQUE,
    CONSTRAINT feature_store_name_lower CHECK (name = lower(name) AND length(name) BETWEEN 1 AND 255)
);

-- A deleted group stays as a mark, so that views which use it can say so, and its id is never given out again.
CREATE TABLE serving.feature_group (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    feature_store_id bigint NOT NULL REFERENCES serving.feature_store (id),
    name text NOT NULL,
    version int NOT NULL,
    description text NOT NULL DEFAULT '',
    event_time text NOT NULL DEFAULT '',
    time_to_live_ms bigint NOT NULL DEFAULT 0,
    generation bigint NOT NULL DEFAULT 0,
    row_set_id bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT feature_group_name_length CHECK (length(name) BETWEEN 1 AND 255),
    CONSTRAINT feature_group_version_positive CHECK (version > 0)
);
CREATE UNIQUE INDEX feature_group_name_version ON serving.feature_group (feature_store_id, name, version)
WHERE deleted_at IS NULL;

CREATE TABLE serving.feature (
    feature_group_id bigint NOT NULL REFERENCES serving.feature_group (id) ON DELETE CASCADE,
    position int NOT NULL,
    name text NOT NULL,
    type text NOT NULL,
    description text NOT NULL DEFAULT '',
    -- Place in the composite key, from 0. Null: no part of the key.
    key_position int,
    PRIMARY KEY (feature_group_id, position),
    CONSTRAINT feature_name UNIQUE (feature_group_id, name)
);

-- One load of a group in Redis: all its keys begin with the row set's id. `loading` until an overwrite is complete,
-- `live` while readers see it (one a group), `retired` until its keys are removed; then its row goes.
CREATE TABLE serving.row_set (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    feature_group_id bigint NOT NULL REFERENCES serving.feature_group (id) ON DELETE CASCADE,
    state text NOT NULL,
    -- loading: the last sign of life of its writer. retired: when its keys may be removed.
    due_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT row_set_state CHECK (state IN ('loading', 'live', 'retired'))
);
CREATE INDEX row_set_due ON serving.row_set (due_at) WHERE state <> 'live';
CREATE INDEX row_set_feature_group ON serving.row_set (feature_group_id);
ALTER TABLE serving.feature_group
ADD CONSTRAINT feature_group_row_set FOREIGN KEY (row_set_id) REFERENCES serving.row_set (id);

CREATE TABLE serving.feature_view (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    feature_store_id bigint NOT NULL REFERENCES serving.feature_store (id),
    name text NOT NULL,
    version int NOT NULL,
    description text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feature_view_name_version UNIQUE (feature_store_id, name, version),
    CONSTRAINT feature_view_name_length CHECK (length(name) BETWEEN 1 AND 255),
    CONSTRAINT feature_view_version_positive CHECK (version > 0)
);

CREATE TABLE serving.view_join (
    feature_view_id bigint NOT NULL REFERENCES serving.feature_view (id) ON DELETE CASCADE,
    join_index int NOT NULL,
    feature_group_id bigint NOT NULL REFERENCES serving.feature_group (id),
    prefix text NOT NULL DEFAULT '',
    -- Pairs: left_columns[i] of the first group equals right_columns[i] of this one.
    left_columns text[] NOT NULL DEFAULT '{}',
    right_columns text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (feature_view_id, join_index)
);
CREATE INDEX view_join_feature_group ON serving.view_join (feature_group_id);

CREATE TABLE serving.view_feature (
    feature_view_id bigint NOT NULL,
    position int NOT NULL,
    join_index int NOT NULL,
    name text NOT NULL,
    label boolean NOT NULL DEFAULT false,
    inference_helper boolean NOT NULL DEFAULT false,
    training_helper boolean NOT NULL DEFAULT false,
    PRIMARY KEY (feature_view_id, position),
    FOREIGN KEY (feature_view_id, join_index) REFERENCES serving.view_join ON DELETE CASCADE
);

CREATE TABLE serving.serving_key (
    feature_view_id bigint NOT NULL,
    position int NOT NULL,
    join_index int NOT NULL,
    feature_name text NOT NULL,
    prefix text NOT NULL DEFAULT '',
    required boolean NOT NULL,
    join_on text NOT NULL DEFAULT '',
    PRIMARY KEY (feature_view_id, position),
    FOREIGN KEY (feature_view_id, join_index) REFERENCES serving.view_join ON DELETE CASCADE
);
