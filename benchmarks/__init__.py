"""Benchmarks against other libraries on the same machine: `make bench`."""
