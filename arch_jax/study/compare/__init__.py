"""Comparisons: different architectures on one task under one budget."""
