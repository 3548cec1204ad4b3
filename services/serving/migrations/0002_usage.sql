-- What was done with the rows of a group, day by day. Processes add to it every few seconds.
CREATE TABLE serving.usage (
    feature_group_id bigint NOT NULL REFERENCES serving.feature_group (id) ON DELETE CASCADE,
    -- In UTC.
    day date NOT NULL,
    rows_read bigint NOT NULL,
    rows_written bigint NOT NULL,
    PRIMARY KEY (feature_group_id, day)
);
