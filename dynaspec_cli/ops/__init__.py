"""Ops of the draft and verify steps: the compiled extension where it was built, the references elsewhere."""
