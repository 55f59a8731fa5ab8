"""Drafters and shortlists in forms that other engines run."""
