"""Measurements of the adapters to sageLLM's packages, through the packages' own code."""
