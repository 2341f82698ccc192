"""Publication of a running engine's statistics: metrics and HTTP routes."""
