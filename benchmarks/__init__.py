"""How fast Triglot is beside the systems it stands in for. Run by `make bench-...`; see docs/benchmarks.md."""
