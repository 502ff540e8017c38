"""How good a model is: held-out loss, instruction following, and their intervals."""
