"""Recurrent encoder-decoders: one sequence is read, another written."""
