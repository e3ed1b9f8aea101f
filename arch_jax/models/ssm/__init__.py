"""State space models: linear recurrences that are computed as convolutions or scans."""
