"""Tiny models, stores and servers for tests. Nothing here is collected."""
