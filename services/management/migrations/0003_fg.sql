-- How features are generated from those of a model feature: triglot.management.v1.FGFeature as JSON.
ALTER TABLE management.model_feature ADD COLUMN fg jsonb NOT NULL DEFAULT '{}';
