"""The machine-learning half of tokenuq: objectives, kernels, tables, evaluation.

Knows nothing of Dagster. Importing this package imports neither torch nor
transformers, so that the pipeline process can read specs and schemas in
milliseconds; the modules that need torch are imported by name.
"""
