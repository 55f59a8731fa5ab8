"""Many prompts: a file of them in, a line for each out, in one process, in several, or on Ray."""
