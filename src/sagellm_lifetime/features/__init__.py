"""What a request says before and while it generates."""
