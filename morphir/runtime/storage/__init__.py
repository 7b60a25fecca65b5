"""What a run leaves on disk: checkpoints, metrics, rewrites, the picture of its widths."""
