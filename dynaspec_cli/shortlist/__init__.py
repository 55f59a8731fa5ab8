"""Shortlists: which rows of the LM head the drafter scores."""
