"""One module a dialect: a flat table of rows, and one renderer of errors."""
