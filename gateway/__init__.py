"""REST in, gRPC out: the three dialects as tables of routes. No state, no SQL, no Redis. Only importer of Starlette."""
