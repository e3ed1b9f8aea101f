"""Autoencoders: images in, reconstructions out, through a bottleneck."""
