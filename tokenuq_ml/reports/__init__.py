"""Plots, the HTML report, and tables for the terminal."""
