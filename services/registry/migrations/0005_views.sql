-- What changes about a feature view without a change of its definition: `meta` of a view is here, not in its message.
ALTER TABLE registry.object
-- feast.core.FeatureViewState.
ADD COLUMN state int NOT NULL DEFAULT 0,
-- The version that the view is at. NULL: it has none.
ADD COLUMN version int;

-- Times that were materialized, in the order in which they came.
CREATE TABLE registry.materialization (
    object_id bigint NOT NULL REFERENCES registry.object (id) ON DELETE CASCADE,
    position int NOT NULL,
    -- Put behind the view's message, these bytes add the interval to it.
    proto bytea NOT NULL,
    -- The interval as JSON.
    rendered text NOT NULL,
    PRIMARY KEY (object_id, position)
);

-- What a view was from one change of its schema or transformation to the next.
CREATE TABLE registry.version (
    object_id bigint NOT NULL REFERENCES registry.object (id) ON DELETE CASCADE,
    number int NOT NULL,
    -- 36 characters.
    id text NOT NULL,
    created timestamptz NOT NULL,
    proto bytea NOT NULL,
    PRIMARY KEY (object_id, number)
);

-- Views that are there already are at their first version.
INSERT INTO registry.version (object_id, number, id, created, proto)
SELECT o.id, 0, gen_random_uuid()::text, o.updated, o.proto FROM registry.object o
WHERE o.kind IN ('featureView', 'onDemandFeatureView', 'streamFeatureView');
UPDATE registry.object SET version = 0 WHERE kind IN ('featureView', 'onDemandFeatureView', 'streamFeatureView');
UPDATE registry.object SET rendered = convert_to((convert_from(rendered, 'UTF8')::jsonb - 'meta')::text, 'UTF8')
WHERE kind IN ('featureView', 'onDemandFeatureView', 'streamFeatureView', 'labelView');
