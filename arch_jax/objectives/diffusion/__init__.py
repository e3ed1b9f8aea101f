"""Objectives of diffusion models, one file a training shape."""
