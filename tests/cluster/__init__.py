"""Studies on a Ray cluster of two local nodes, and what becomes of them when a part of it fails."""
