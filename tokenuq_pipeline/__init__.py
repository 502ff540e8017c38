"""The Dagster side of tokenuq: assets, automation and the command line. Does not import torch."""
