"""The token-level objective, selection, distillation and the training loop around them."""
