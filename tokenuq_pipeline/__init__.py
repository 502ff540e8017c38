"""The Dagster side of tokenuq: thin, imports no torch. What is computed, and how, is `tokenuq_ml`'s."""
