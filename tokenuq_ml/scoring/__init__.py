"""Per-token losses and uncertainty of a model, and tables computed from them."""
