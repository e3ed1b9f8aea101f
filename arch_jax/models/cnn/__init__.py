"""Convolutional networks: pictures in, logits out."""
