"""What this machine pays for a verification and a draft step, and the tree that follows from it."""
