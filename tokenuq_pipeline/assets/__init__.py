"""Factories of the asset graph: one file a stage, in the order in which data flows."""
