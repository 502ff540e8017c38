"""The Dagster half of tokenuq: assets, checks, jobs and the command line.

Thin: it says what depends on what, starts child processes and files what they make.
Imports neither torch nor transformers, so that definitions load in seconds.
"""
