"""Drop-in for Feast's registry server: definitions of features, in PostgreSQL."""
