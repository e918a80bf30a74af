"""Models in one file, from pixels to probabilities: written by torch, run by onnxruntime alone."""
