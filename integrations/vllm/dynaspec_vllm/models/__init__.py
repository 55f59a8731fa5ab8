"""Draft models that vLLM registers; each is one of vLLM's own with a shortlist."""
