"""A conversation: its messages, the lines that are typed, and where they come from."""
