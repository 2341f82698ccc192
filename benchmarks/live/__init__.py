"""What ``live_load.py`` and ``soak.py`` are made of."""

END_AT = "end_at"
"""In ``vllm_xargs``: how many tokens a request generates. For the benchmark's classes alone."""
KEY = "key"
"""There, too: what the benchmark calls it; HTTP gives it another name."""
