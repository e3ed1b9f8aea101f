"""Generative adversarial networks: a generator and the discriminator that it learns from."""
