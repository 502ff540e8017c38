"""Comparisons of studies: one module per kind, which turns tables of several studies into the sections of a page."""
