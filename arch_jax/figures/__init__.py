"""Figures of samples, predictions, attention, embeddings. Matplotlib is imported when one is drawn."""
