-- Which data sources an entity is joined with, and by how many views, so that showing an entity costs the same however
-- many views use it.
CREATE TABLE registry.entity_source (
    project text COLLATE "C" NOT NULL REFERENCES registry.project (name) ON DELETE CASCADE,
    entity text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    views bigint NOT NULL,
    PRIMARY KEY (project, entity, source)
);
-- Nobody writes between the count and the triggers.
LOCK TABLE registry.edge IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO registry.entity_source (project, entity, source, views)
SELECT e.project, e.source_name, d.source_name, count(*)
FROM registry.edge e JOIN registry.edge d ON d.object_id = e.object_id
WHERE e.source_type = 'entity' AND d.source_type = 'dataSource'
GROUP BY e.project, e.source_name, d.source_name;

-- The edges of an object are always written, and always deleted, by one statement.
CREATE FUNCTION registry.edges_added() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO registry.entity_source AS s (project, entity, source, views)
    SELECT e.project, e.source_name, d.source_name, count(*)
    FROM added e JOIN added d ON d.object_id = e.object_id
    WHERE e.source_type = 'entity' AND d.source_type = 'dataSource'
    GROUP BY e.project, e.source_name, d.source_name
    ON CONFLICT (project, entity, source) DO UPDATE SET views = s.views + excluded.views;
    RETURN NULL;
END
$$;
CREATE TRIGGER edge_added AFTER INSERT ON registry.edge
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION registry.edges_added();

-- A project that is deleted takes its pairs along: there is nothing to change then.
CREATE FUNCTION registry.edges_removed() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    WITH lost AS (
        SELECT e.project, e.source_name AS entity, d.source_name AS source, count(*) AS views
        FROM removed e JOIN removed d ON d.object_id = e.object_id
        WHERE e.source_type = 'entity' AND d.source_type = 'dataSource'
        GROUP BY e.project, e.source_name, d.source_name
    ),
    gone AS (
        DELETE FROM registry.entity_source s USING lost l
        WHERE (s.project, s.entity, s.source) = (l.project, l.entity, l.source) AND s.views <= l.views
    )
    UPDATE registry.entity_source s SET views = s.views - l.views FROM lost l
    WHERE (s.project, s.entity, s.source) = (l.project, l.entity, l.source) AND s.views > l.views;
    RETURN NULL;
END
$$;
CREATE TRIGGER edge_removed AFTER DELETE ON registry.edge
REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION registry.edges_removed();
