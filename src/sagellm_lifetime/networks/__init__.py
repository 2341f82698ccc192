"""Neural length models: evidence, training (PyTorch) and serving (onnxruntime)."""
