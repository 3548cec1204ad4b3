"""The three services. Each owns one PostgreSQL schema and imports no other; they meet over gRPC."""
