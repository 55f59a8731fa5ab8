"""The target in fixed shapes: what a CUDA graph can hold. The same code runs on CPU tensors."""
