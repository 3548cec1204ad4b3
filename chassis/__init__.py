"""How any service runs: errors, server, settings, stores, authentication, telemetry. Knows nothing of features."""
