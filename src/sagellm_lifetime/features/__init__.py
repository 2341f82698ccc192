"""Features of a request, at admission and while it generates."""
