"""A trace replayed through vLLM's own scheduler, KV cache manager and block pool, without a model."""
