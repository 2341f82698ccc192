"""Starting vLLM with prediction."""
