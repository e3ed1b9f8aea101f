"""Recurrent encoder-decoders: one sequence is encoded, another generated."""
