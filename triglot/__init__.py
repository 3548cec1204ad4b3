"""The front door: command line, the stack that wires everything, embedded servers, the sample."""
