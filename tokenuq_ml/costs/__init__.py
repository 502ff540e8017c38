"""Costs of training: FLOPs, the record of a training, and the estimates of `tokenuq plan`."""
