-- What permissions look at is in the row, so that a list is narrowed without opening every object's JSON.
ALTER TABLE registry.object ADD COLUMN types text[] GENERATED ALWAYS AS (registry.types_of(kind, rendered)) STORED;

-- As before, with each permission's JSON read once.
CREATE OR REPLACE FUNCTION registry.rules(caller jsonb, actions text[])
RETURNS TABLE (
    project text, name text, types text[], patterns text[], tags jsonb, granted boolean, asked text
)
LANGUAGE sql STABLE
AS $$
    WITH spoken AS MATERIALIZED (
        SELECT p.project, p.name, convert_from(p.rendered, 'UTF8')::jsonb -> 'spec' AS spec
        FROM registry.object p WHERE p.kind = 'permission'
    ),
    parted AS MATERIALIZED (
        SELECT p.project, p.name, p.spec, p.spec -> 'policy' AS policy,
            ARRAY(SELECT jsonb_array_elements_text(p.spec #> '{policy,roleBasedPolicy,roles}')) AS roles,
            ARRAY(SELECT jsonb_array_elements_text(p.spec #> ARRAY['policy', g.key, 'groups'])
                FROM (VALUES ('groupBasedPolicy'), ('combinedGroupNamespacePolicy')) g (key)) AS groups,
            ARRAY(SELECT jsonb_array_elements_text(p.spec #> ARRAY['policy', n.key, 'namespaces'])
                FROM (VALUES ('namespaceBasedPolicy'), ('combinedGroupNamespacePolicy')) n (key)) AS namespaces
        FROM spoken p WHERE p.spec -> 'actions' ?& actions
    )
    SELECT p.project, p.name,
        (SELECT array_agg(t) FROM jsonb_array_elements_text(p.spec -> 'types') t),
        (SELECT array_agg('^(?:' || n || ')$') FROM jsonb_array_elements_text(p.spec -> 'namePatterns') n),
        coalesce(p.spec -> 'requiredTags', '{}'),
        coalesce(CASE
            WHEN p.policy ? 'roleBasedPolicy' THEN caller -> 'roles' ?| p.roles
            WHEN p.policy ? 'groupBasedPolicy' THEN caller -> 'groups' ?| p.groups
            WHEN p.policy ? 'namespaceBasedPolicy' THEN caller -> 'namespaces' ?| p.namespaces
            WHEN p.policy ? 'combinedGroupNamespacePolicy'
                THEN caller -> 'groups' ?| p.groups OR caller -> 'namespaces' ?| p.namespaces
            ELSE p.policy IS NOT NULL
        END, false),
        CASE
            WHEN p.policy ? 'roleBasedPolicy'
                THEN 'Requires roles [' || (SELECT string_agg(quote_literal(r), ', ') FROM unnest(p.roles) r) || ']'
            WHEN p.policy ? 'groupBasedPolicy' THEN 'User is not added into the permitted groups'
            WHEN p.policy ? 'namespaceBasedPolicy' THEN 'User is not added into the permitted namespaces'
            ELSE 'User must be in at least one of the permitted groups or namespaces'
        END
    FROM parted p
$$;
