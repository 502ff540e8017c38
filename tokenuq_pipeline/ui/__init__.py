"""Dagster's web UI behind a guard, with the life of its processes."""
