CREATE EXTENSION IF NOT EXISTS pg_trgm;

-- Tags as search reads them: a line `key=value` each, in lower case.
CREATE FUNCTION registry.tag_text(tags jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$
    SELECT coalesce(string_agg(lower(t.key || '=' || t.value), chr(10) ORDER BY t.key), '')
    FROM jsonb_each_text(tags) t
$$;

-- All that search looks into, a line each: name, description, tags.
ALTER TABLE registry.object ADD COLUMN search_text text COLLATE "C" NOT NULL
GENERATED ALWAYS AS (sort_name || chr(10) || lower(description) || chr(10) || registry.tag_text(tags)) STORED;
CREATE INDEX object_search ON registry.object USING gin (search_text gin_trgm_ops);
