-- The lineage of a whole project, in the order in which it is listed.
CREATE INDEX edge_by_project
ON registry.edge (project, target_type, target_name, source_type, source_name);
