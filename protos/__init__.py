"""The contracts: what crosses a wire, and the code generated from it. `generate.py` rebuilds `gen/`."""
