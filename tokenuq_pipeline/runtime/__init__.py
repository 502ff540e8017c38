"""What stages run on: the store, child processes, the Dagster instance."""
