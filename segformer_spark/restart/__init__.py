"""Restart in place: agents that start the ranks of a job again inside its allocation. Linux and Slurm alone."""
