"""One verdict on a log: who predicts it best, what that buys in vLLM, how to switch it on."""
