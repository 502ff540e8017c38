"""One program per stage: reads a request, computes, writes tables, and reports to Dagster or the terminal."""
