"""One program per stage: reads a request, computes, writes tables, reports through Dagster Pipes or the terminal."""
