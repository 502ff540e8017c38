"""Data: examples, chat templates, tokens, token categories and batches."""
