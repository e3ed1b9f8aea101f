"""What a person looks at: figures of samples, predictions, attention, embeddings. Matplotlib is imported when drawn."""
