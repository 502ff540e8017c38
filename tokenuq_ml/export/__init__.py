"""Trained models in formats that other programs load, and their model cards."""
