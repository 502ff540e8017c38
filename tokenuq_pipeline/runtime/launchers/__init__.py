"""Where stages run: as child processes of this one, or elsewhere."""
