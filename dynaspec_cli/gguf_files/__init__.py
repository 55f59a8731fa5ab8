"""GGUF files read by ourselves: header, tensors, configuration and tokenizer."""
