"""Studies: a table or figure of the paper as a set of runs, and a pure function of what they recorded."""
