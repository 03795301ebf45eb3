"""What is registered: files, definitions, descriptions, and the snapshot that is served."""
