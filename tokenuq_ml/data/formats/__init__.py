"""Row formats: one module per format, each a parser from a record to an example."""
