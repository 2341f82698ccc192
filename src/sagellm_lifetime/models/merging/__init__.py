"""Merges of the states that models are made of, one kind a file; each takes several states."""
