"""vLLM: a scheduler that asks before it admits and preempts."""
