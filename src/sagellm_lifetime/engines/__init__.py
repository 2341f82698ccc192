"""Engines that act on predictions."""
