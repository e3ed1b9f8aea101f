"""Autoencoders: pictures in, pictures out, through a code."""
