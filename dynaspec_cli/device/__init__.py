"""Drafting on the device: a whole draft round in fixed shapes, without a value read back.

What the host's policies, shortlists and drafters do with lists and sizes is done here with padded
tensors and masks, so that a round can be captured in one CUDA graph. Every part is a pure function
of tensors and gives what its counterpart on the host gives, row by row.
"""
