"""How any service runs: errors, server, settings, stores, authentication, telemetry. Knows nothing of features."""

import os

# Before gRPC is imported, because it reads this then. Its fork handlers now and then abort a child that has not become
# the program yet that it is to run: PostgreSQL, Redis, the worker. No child of ours needs them: none uses gRPC before.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
# And it would write a line of its own, which is no JSON, for each handshake that fails: whoever reaches a port with TLS
# could fill the log. Who looks for the reason of one sets INFO.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
