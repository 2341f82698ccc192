"""Verdict on a log: which predictor is best, what it buys in vLLM, how to switch it on."""
