"""Weights in and out, between other libraries' names and layouts and ours."""
