"""Graph networks: a graph in, predictions for its nodes, its edges or the whole graph out."""
