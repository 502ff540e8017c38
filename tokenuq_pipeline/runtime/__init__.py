"""The store, child processes, the Dagster instance: what stages run on."""
