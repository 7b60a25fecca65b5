"""How close the estimates are to the truth, and how good theta is: the paper's figures 3 and 4."""
