-- Feast's permissions, judged where the objects are: whoever may read only part of a registry reads it with the very
-- same queries, over what is left (access.sql).

-- The rules of all projects for a caller {"roles": [], "groups": [], "namespaces": []} and the actions it wants to
-- perform: one for each permission that speaks of all these actions, and whether it grants them. `types` is null where a
-- permission covers all types; a permission without a policy grants nobody anything.
CREATE FUNCTION registry.rules(caller jsonb, actions text[])
RETURNS TABLE (
    project text, name text, types text[], patterns text[], tags jsonb, granted boolean, asked text
)
LANGUAGE sql STABLE
AS $$
    SELECT p.project, p.name,
        (SELECT array_agg(t) FROM jsonb_array_elements_text(s.spec -> 'types') t),
        (SELECT array_agg('^(?:' || n || ')$') FROM jsonb_array_elements_text(s.spec -> 'namePatterns') n),
        coalesce(s.spec -> 'requiredTags', '{}'),
        coalesce(CASE
            WHEN b.policy ? 'roleBasedPolicy' THEN caller -> 'roles' ?| w.roles
            WHEN b.policy ? 'groupBasedPolicy' THEN caller -> 'groups' ?| w.groups
            WHEN b.policy ? 'namespaceBasedPolicy' THEN caller -> 'namespaces' ?| w.namespaces
            WHEN b.policy ? 'combinedGroupNamespacePolicy'
                THEN caller -> 'groups' ?| w.groups OR caller -> 'namespaces' ?| w.namespaces
            ELSE b.policy IS NOT NULL
        END, false),
        CASE
            WHEN b.policy ? 'roleBasedPolicy'
                THEN 'Requires roles [' || (SELECT string_agg(quote_literal(r), ', ') FROM unnest(w.roles) r) || ']'
            WHEN b.policy ? 'groupBasedPolicy' THEN 'User is not added into the permitted groups'
            WHEN b.policy ? 'namespaceBasedPolicy' THEN 'User is not added into the permitted namespaces'
            ELSE 'User must be in at least one of the permitted groups or namespaces'
        END
    FROM registry.object p
    CROSS JOIN LATERAL (SELECT convert_from(p.rendered, 'UTF8')::jsonb -> 'spec' AS spec) s
    CROSS JOIN LATERAL (SELECT s.spec -> 'policy' AS policy) b
    CROSS JOIN LATERAL (
        SELECT
            ARRAY(SELECT jsonb_array_elements_text(b.policy #> '{roleBasedPolicy,roles}')) AS roles,
            ARRAY(SELECT jsonb_array_elements_text(b.policy -> g.key -> 'groups')
                FROM (VALUES ('groupBasedPolicy'), ('combinedGroupNamespacePolicy')) g (key)) AS groups,
            ARRAY(SELECT jsonb_array_elements_text(b.policy -> n.key -> 'namespaces')
                FROM (VALUES ('namespaceBasedPolicy'), ('combinedGroupNamespacePolicy')) n (key)) AS namespaces
    ) w
    WHERE p.kind = 'permission' AND s.spec -> 'actions' ?& actions
$$;

-- The types that Feast counts an object among. A stream feature view is a feature view; a feature view with a
-- transformation of its own is a batch feature view as well.
CREATE FUNCTION registry.types_of(kind text, rendered bytea)
RETURNS text[]
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE kind
        WHEN 'featureView' THEN CASE
            WHEN convert_from(rendered, 'UTF8')::jsonb #> '{spec,featureTransformation}' IS NULL
                THEN '{FEATURE_VIEW}'::text[]
            ELSE '{FEATURE_VIEW,BATCH_FEATURE_VIEW}'
        END
        WHEN 'streamFeatureView' THEN '{FEATURE_VIEW,STREAM_FEATURE_VIEW}'
        WHEN 'onDemandFeatureView' THEN '{ON_DEMAND_FEATURE_VIEW}'
        WHEN 'labelView' THEN '{LABEL_VIEW}'
        WHEN 'entity' THEN '{ENTITY}'
        WHEN 'featureService' THEN '{FEATURE_SERVICE}'
        WHEN 'dataSource' THEN '{DATA_SOURCE}'
        WHEN 'validationReference' THEN '{VALIDATION_REFERENCE}'
        WHEN 'savedDataset' THEN '{SAVED_DATASET}'
        WHEN 'permission' THEN '{PERMISSION}'
        WHEN 'project' THEN '{PROJECT}'
    END
$$;
