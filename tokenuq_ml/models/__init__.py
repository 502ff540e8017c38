"""Base models, adapters, numerics, forward passes, and how dropout is sampled."""
