"""Recurrent networks: a state of fixed size, passed from each token to the next."""
