"""A synthetic language: documents whose every response token has an exactly known distribution."""
