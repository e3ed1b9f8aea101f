"""Convolutional networks: images in, logits out."""
