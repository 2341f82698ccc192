"""Scheduling decisions: pure functions of sequences, predictions, memory and the clock."""
