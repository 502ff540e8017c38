"""The token-level objective over any Trainer, and the training of teacher and students with it."""
