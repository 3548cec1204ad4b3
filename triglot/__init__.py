"""The front door: command line, the stack that wires everything, embedded servers, the sample."""

import chassis  # noqa: F401 - before anything that imports gRPC; see there
