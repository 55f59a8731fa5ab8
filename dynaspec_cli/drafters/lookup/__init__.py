"""Drafting from the text itself: what followed earlier where the text ended as it does now."""
