"""Checkpoints of diffusers, one file a class. A file is found by lying here."""
