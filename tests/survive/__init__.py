"""Trials of what may go wrong on a machine: kills, full disks, bad input, damaged stores. `make survive` runs them."""
