"""Scaling laws: fitted to measured points, or to a family of sizes that is trained for it."""
