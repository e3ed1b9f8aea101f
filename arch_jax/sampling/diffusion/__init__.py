"""Samplers of diffusion models: from noise to data through a trained denoiser, one file an idea."""
