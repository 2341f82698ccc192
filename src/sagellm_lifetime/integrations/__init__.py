"""Adapters to other projects' interfaces: thin, one folder each, behind an extra of its name."""
