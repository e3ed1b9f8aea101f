"""Plans: the cost of a step on a machine that one does not have."""
