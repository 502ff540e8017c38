"""Helpers that several test modules share; pytest collects nothing here."""
