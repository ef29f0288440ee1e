"""The `karvon` command, the demo and the simulated hardware; imports its halves lazily."""

__version__ = "0.1.0"
