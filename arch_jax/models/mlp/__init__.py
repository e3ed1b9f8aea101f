"""Perceptrons: fully connected layers on an image's pixels."""
