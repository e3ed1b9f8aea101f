"""transformers' models of text. A file is found by lying here; each `CheckpointType` in it is a `model_type`."""
