"""What a change to a channel touches: provenance by execution, locality, and exact costs."""
