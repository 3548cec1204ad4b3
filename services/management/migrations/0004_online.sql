-- Rows were written to the view's group otherwise than by a task: it has to be dropped with the view.
ALTER TABLE management.feature_view ADD COLUMN written_online boolean NOT NULL DEFAULT false;
