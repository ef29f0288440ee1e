"""Owns the commands that speak with a running cloud: `karvon cloud stations list` and the like."""
