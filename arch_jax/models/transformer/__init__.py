"""Transformers: attention as the sequence mixer."""
