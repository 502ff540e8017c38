"""What training costs: FLOPs, the record of a run, and estimates for `tokenuq plan`."""
