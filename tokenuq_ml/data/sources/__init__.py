"""Where rows come from: files, folders, tables, packages and the Hugging Face Hub."""
