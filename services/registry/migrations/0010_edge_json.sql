-- An edge as lists of a project's lineage show it. Not IMMUTABLE, as to_json is not: else it would not be inlined.
CREATE FUNCTION registry.edge_json(source_type text, source_name text, target_type text, target_name text)
RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT '{"source":{"type":"' || source_type || '","name":' || to_json(source_name)::text
        || '},"target":{"type":"' || target_type || '","name":' || to_json(target_name)::text || '}}'
$$;
