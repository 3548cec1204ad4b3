-- The catalogue of PAI's resources and their tasks. Names of constraints are part of the code: each maps to an error.

CREATE TABLE management.instance (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO management.instance DEFAULT VALUES;

CREATE TABLE management.datasource (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL CONSTRAINT datasource_name_key UNIQUE,
    workspace_id text NOT NULL,
    type text NOT NULL,
    uri text NOT NULL,
    -- What may be shown; secrets are masked.
    config text NOT NULL,
    -- The whole, encrypted; null if it holds no secret.
    config_sealed bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE management.project (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    -- The name of its feature store in serving: what makes two names the same.
    feature_store text NOT NULL CONSTRAINT project_name_key UNIQUE,
    workspace_id text NOT NULL,
    description text NOT NULL,
    offline_datasource_id bigint NOT NULL
        CONSTRAINT project_offline_datasource_fkey REFERENCES management.datasource,
    offline_life_cycle int NOT NULL,
    online_datasource_id bigint NOT NULL
        CONSTRAINT project_online_datasource_fkey REFERENCES management.datasource,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX project_offline_datasource ON management.project (offline_datasource_id);
CREATE INDEX project_online_datasource ON management.project (online_datasource_id);

CREATE TABLE management.feature_entity (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id bigint NOT NULL CONSTRAINT feature_entity_project_fkey REFERENCES management.project,
    name text NOT NULL,
    join_id text NOT NULL,
    parent_id bigint,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feature_entity_name_key UNIQUE (project_id, name),
    CONSTRAINT feature_entity_id_in_project UNIQUE (project_id, id),
    CONSTRAINT feature_entity_parent_fkey
        FOREIGN KEY (project_id, parent_id) REFERENCES management.feature_entity (project_id, id)
);
CREATE INDEX feature_entity_parent ON management.feature_entity (project_id, parent_id);

CREATE TABLE management.feature_view (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id bigint NOT NULL CONSTRAINT feature_view_project_fkey REFERENCES management.project,
    feature_entity_id bigint,
    name text NOT NULL,
    type text NOT NULL,
    write_method text NOT NULL,
    register_table text NOT NULL,
    register_datasource_id bigint
        CONSTRAINT feature_view_register_datasource_fkey REFERENCES management.datasource,
    sync_online_table boolean NOT NULL,
    write_to_featuredb boolean NOT NULL,
    ttl int NOT NULL,
    tags text[] NOT NULL,
    config text NOT NULL,
    -- A list of {name, type, attributes, dimension, transform}, as triglot.management.v1.FeatureViewField has it.
    fields jsonb NOT NULL,
    last_sync_config text NOT NULL DEFAULT '',
    synced_at timestamptz,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feature_view_name_key UNIQUE (project_id, name),
    CONSTRAINT feature_view_id_in_project UNIQUE (project_id, id),
    CONSTRAINT feature_view_entity_fkey
        FOREIGN KEY (project_id, feature_entity_id) REFERENCES management.feature_entity (project_id, id)
);
CREATE INDEX feature_view_entity ON management.feature_view (project_id, feature_entity_id);
CREATE INDEX feature_view_register_datasource ON management.feature_view (register_datasource_id);

CREATE TABLE management.label_table (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id bigint NOT NULL CONSTRAINT label_table_project_fkey REFERENCES management.project,
    datasource_id bigint NOT NULL CONSTRAINT label_table_datasource_fkey REFERENCES management.datasource,
    name text NOT NULL,
    -- A list of {name, type, attributes, aligned_entity_name}.
    fields jsonb NOT NULL,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT label_table_name_key UNIQUE (project_id, name),
    CONSTRAINT label_table_id_in_project UNIQUE (project_id, id)
);
CREATE INDEX label_table_datasource ON management.label_table (datasource_id);

CREATE TABLE management.model_feature (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id bigint NOT NULL CONSTRAINT model_feature_project_fkey REFERENCES management.project,
    label_table_id bigint NOT NULL,
    name text NOT NULL,
    label_priority_level int NOT NULL,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT model_feature_name_key UNIQUE (project_id, name),
    CONSTRAINT model_feature_id_in_project UNIQUE (project_id, id),
    CONSTRAINT model_feature_label_table_fkey
        FOREIGN KEY (project_id, label_table_id) REFERENCES management.label_table (project_id, id)
);
CREATE INDEX model_feature_label_table ON management.model_feature (project_id, label_table_id);

-- What a model feature takes: a view's field, or, where `name` is null, a whole Sequence view.
CREATE TABLE management.selected_feature (
    project_id bigint NOT NULL,
    model_feature_id bigint NOT NULL,
    position int NOT NULL,
    feature_view_id bigint NOT NULL,
    name text,
    alias_name text NOT NULL DEFAULT '',
    prefix_name text NOT NULL DEFAULT '',
    type text NOT NULL DEFAULT '',
    PRIMARY KEY (model_feature_id, position),
    CONSTRAINT selected_feature_model_fkey FOREIGN KEY (project_id, model_feature_id)
        REFERENCES management.model_feature (project_id, id) ON DELETE CASCADE,
    CONSTRAINT selected_feature_view_fkey
        FOREIGN KEY (project_id, feature_view_id) REFERENCES management.feature_view (project_id, id)
);
CREATE INDEX selected_feature_view ON management.selected_feature (project_id, feature_view_id);

-- Tasks outlive what they worked on: object and project are kept as they were called.
CREATE TABLE management.task (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type text NOT NULL,
    object_type text NOT NULL,
    object_id bigint NOT NULL,
    project_id bigint NOT NULL,
    project_name text NOT NULL,
    feature_store text NOT NULL,
    -- Null once the view is gone.
    feature_view_id bigint CONSTRAINT task_feature_view_fkey REFERENCES management.feature_view ON DELETE SET NULL,
    status text NOT NULL DEFAULT 'Initializing'
        CONSTRAINT task_status CHECK (status IN ('Initializing', 'Running', 'Success', 'Failure')),
    config text NOT NULL,
    running_config text NOT NULL DEFAULT '{}',
    rows_done bigint NOT NULL DEFAULT 0,
    rows_total bigint NOT NULL DEFAULT 0,
    -- Rises each time a worker takes the task up. A worker whose number is not this one has lost it.
    attempt int NOT NULL DEFAULT 0,
    -- Its place in the queue.
    job_id bigint,
    request_id text NOT NULL,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    executed_at timestamptz,
    finished_at timestamptz,
    modified_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX task_project ON management.task (project_id, id);
CREATE INDEX task_object ON management.task (object_type, object_id, id);
CREATE INDEX task_active ON management.task (id) WHERE status IN ('Initializing', 'Running');
CREATE INDEX task_feature_view ON management.task (feature_view_id);

CREATE TABLE management.task_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id bigint NOT NULL CONSTRAINT task_log_task_fkey REFERENCES management.task ON DELETE CASCADE,
    logged_at timestamptz NOT NULL DEFAULT now(),
    message text NOT NULL
);
CREATE INDEX task_log_task ON management.task_log (task_id, id);
