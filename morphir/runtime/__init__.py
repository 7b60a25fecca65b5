"""The runtime: lowering a graph for the learner, learning and scoring morphisms, growing."""
