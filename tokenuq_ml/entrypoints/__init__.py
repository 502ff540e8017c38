"""One small program a heavy stage: reads a request, does the stage, reports.

The only package of `tokenuq_ml` that may speak to Dagster, and only through
`dagster_pipes`; without Dagster around, each program prints its progress.
"""
