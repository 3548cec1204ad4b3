-- The Sequence view whose behaviours this one shows, as its Config says.
ALTER TABLE management.feature_view ADD COLUMN referenced_view_id bigint;
ALTER TABLE management.feature_view ADD CONSTRAINT feature_view_referenced_fkey
    FOREIGN KEY (project_id, referenced_view_id) REFERENCES management.feature_view (project_id, id);
CREATE INDEX feature_view_referenced ON management.feature_view (project_id, referenced_view_id);
