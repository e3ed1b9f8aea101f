"""Graph networks: a graph in, something for each of its nodes, edges or the whole of it out."""
