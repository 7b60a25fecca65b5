"""Graph-rewrite passes: the pass manager, the rewriter, and one file for each pass."""
