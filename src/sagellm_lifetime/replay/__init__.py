"""A trace replayed through vLLM's own scheduler and block pool, without a model."""
