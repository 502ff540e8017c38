"""Sources of rows: files, folders, installed packages and the Hugging Face Hub."""
