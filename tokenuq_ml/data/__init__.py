"""Examples, chat templates, tokens, token categories and batches."""
