"""Measures that are no losses: what a trained model is worth, one file a measure."""
