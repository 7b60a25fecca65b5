"""The proof of a graph's rewrites by numbers: splits, prunes, plans and exports in float64."""
