"""Denoisers: the networks of diffusion and flow models."""
