"""What a run needs around its loop: ranks, the output folder, signals, checkpoints, figures."""
