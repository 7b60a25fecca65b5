"""Algorithm 1: the schedule, training, selection, and the loop that ties them together."""
