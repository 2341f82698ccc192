"""Models to try things on: fetched from a package index, and laid out as vLLM loads them."""
