"""Checkpoints of transformers: models of text and of images, one file a `model_type`."""
