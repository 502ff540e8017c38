"""Reports: plots, the HTML page, and the table for the terminal."""
