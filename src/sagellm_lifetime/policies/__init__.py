"""Decisions: pure functions of sequences, predictions, memory and the clock."""
