"""Sharing what several replicas learn, through a store: one state for each replica."""
