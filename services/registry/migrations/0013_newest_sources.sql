-- The data sources of an entity in the order in which they came to it, so that the newest are found without a look at all
-- others of the entity, or of the project. Those that are there are numbered as PostgreSQL finds them.
ALTER TABLE registry.entity_source ADD COLUMN id bigint NOT NULL GENERATED ALWAYS AS IDENTITY;
CREATE INDEX entity_source_newest ON registry.entity_source (project, entity, id);
