-- What callers looked at last.
CREATE TABLE registry.visit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    principal text COLLATE "C" NOT NULL,
    project text COLLATE "C" NOT NULL REFERENCES registry.project (name) ON DELETE CASCADE,
    object text COLLATE "C" NOT NULL,
    object_name text COLLATE "C" NOT NULL,
    path text COLLATE "C" NOT NULL,
    method text COLLATE "C" NOT NULL,
    visited timestamptz NOT NULL
);
CREATE INDEX visit_newest ON registry.visit (principal, project, visited, id);
-- Cascades from a project to its visits.
CREATE INDEX visit_of_project ON registry.visit (project);
