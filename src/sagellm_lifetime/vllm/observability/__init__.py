"""What a running engine publishes: statistics, metrics, the HTTP routes."""
