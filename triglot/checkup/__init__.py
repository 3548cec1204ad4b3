"""What `triglot doctor` looks at, one module for each thing that a deployment stands on."""
