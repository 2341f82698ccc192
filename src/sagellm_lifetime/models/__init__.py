"""Length models, one kind a file."""
