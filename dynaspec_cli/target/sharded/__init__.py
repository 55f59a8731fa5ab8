"""A target split over the processes of torchrun: rank 0 runs the command, the others follow it."""
