"""Perceptrons: a picture's pixels in one row, and layers that are fully connected."""
