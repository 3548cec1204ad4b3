-- How many objects of each kind a project has, so that counting costs the same in a large registry.
CREATE TABLE registry.tally (
    project text COLLATE "C" NOT NULL REFERENCES registry.project (name) ON DELETE CASCADE,
    kind text COLLATE "C" NOT NULL,
    objects bigint NOT NULL,
    PRIMARY KEY (project, kind)
);
-- Nobody writes between the count and the triggers.
LOCK TABLE registry.object IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO registry.tally (project, kind, objects)
SELECT o.project, o.kind, count(*) FROM registry.object o GROUP BY o.project, o.kind;

CREATE FUNCTION registry.tally_added() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO registry.tally AS t (project, kind, objects)
    SELECT a.project, a.kind, count(*) FROM added a GROUP BY a.project, a.kind
    ON CONFLICT (project, kind) DO UPDATE SET objects = t.objects + excluded.objects;
    RETURN NULL;
END
$$;
CREATE TRIGGER object_added AFTER INSERT ON registry.object
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION registry.tally_added();

-- A project that is deleted takes its tally along: there is nothing to update then.
CREATE FUNCTION registry.tally_removed() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE registry.tally t SET objects = t.objects - r.objects
    FROM (SELECT d.project, d.kind, count(*) AS objects FROM removed d GROUP BY d.project, d.kind) r
    WHERE t.project = r.project AND t.kind = r.kind;
    RETURN NULL;
END
$$;
CREATE TRIGGER object_removed AFTER DELETE ON registry.object
REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION registry.tally_removed();

-- The objects of a kind that changed last, in all projects.
CREATE INDEX object_newest ON registry.object (kind, updated);
