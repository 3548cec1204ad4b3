-- Definitions of all projects. Names are compared byte by byte, as Feast does, so their collation is "C".
CREATE TABLE registry.project (
    name text COLLATE "C" PRIMARY KEY,
    -- Feast's project id, 36 characters.
    uuid text NOT NULL,
    -- feast.core.Infra, as it was sent.
    infra bytea,
    -- Last write to the project or to anything in it. Writers take turns on this row.
    updated timestamptz NOT NULL
);

-- Any object is one row; what is not in a column is in the protobuf message.
CREATE TABLE registry.object (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project text COLLATE "C" NOT NULL REFERENCES registry.project (name) ON DELETE CASCADE,
    kind text COLLATE "C" NOT NULL,
    -- Names are unique within a family: the four kinds of feature views are one.
    family text COLLATE "C" NOT NULL,
    -- Features and labels belong to a view and are unique within it.
    parent_id bigint REFERENCES registry.object (id) ON DELETE CASCADE,
    parent text COLLATE "C" NOT NULL DEFAULT '',
    position int NOT NULL DEFAULT 0,
    name text COLLATE "C" NOT NULL,
    -- In lower case, as lists are sorted.
    sort_name text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    description text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,
    tags jsonb NOT NULL,
    created timestamptz NOT NULL,
    updated timestamptz NOT NULL,
    proto bytea NOT NULL,
    -- The object as JSON, made when it was written.
    rendered bytea NOT NULL,
    CONSTRAINT object_key UNIQUE (project, family, parent, name)
);
-- Lists of one kind: of a project, and of all projects by project and name.
CREATE INDEX object_by_name ON registry.object (kind, project, sort_name, id);
-- Lists of one kind in all projects by name.
CREATE INDEX object_by_name_anywhere ON registry.object (kind, sort_name, id);
-- The same for feature views of any kind. The predicates are those of queries.sql, word for word.
CREATE INDEX view_by_name ON registry.object (project, sort_name, id)
WHERE kind IN ('featureView', 'onDemandFeatureView', 'streamFeatureView');
CREATE INDEX view_by_name_anywhere ON registry.object (sort_name, id)
WHERE kind IN ('featureView', 'onDemandFeatureView', 'streamFeatureView');
-- Features in the order of their views.
CREATE INDEX object_in_parent ON registry.object (kind, project, parent, position, id);
-- Cascades from a view to its features.
CREATE INDEX object_of_parent ON registry.object (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX object_tags ON registry.object USING gin (tags jsonb_path_ops);
CREATE INDEX object_updated ON registry.object (kind, project, updated);

-- Direct lineage: `source` is used by `target`. The object whose definition says so owns the edge.
CREATE TABLE registry.edge (
    object_id bigint NOT NULL REFERENCES registry.object (id) ON DELETE CASCADE,
    position int NOT NULL,
    project text COLLATE "C" NOT NULL,
    source_type text COLLATE "C" NOT NULL,
    source_name text COLLATE "C" NOT NULL,
    target_type text COLLATE "C" NOT NULL,
    target_name text COLLATE "C" NOT NULL,
    PRIMARY KEY (object_id, position)
);
CREATE INDEX edge_source ON registry.edge (source_type, source_name, project);
CREATE INDEX edge_target ON registry.edge (target_type, target_name, project);
