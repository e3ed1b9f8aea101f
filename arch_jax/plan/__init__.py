"""Plans: what a step costs on a machine that one does not have."""
