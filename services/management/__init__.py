"""Drop-in for PAI FeatureStore's management API: a catalogue, and durable tasks that publish tables."""
