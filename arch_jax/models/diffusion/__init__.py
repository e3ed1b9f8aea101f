"""Denoising networks of diffusion and flow models: convolutional, Transformer, and one for points."""
