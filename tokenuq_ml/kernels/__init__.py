"""Hidden states to logits, scores, losses and gradients, a chunk of rows at a time."""
