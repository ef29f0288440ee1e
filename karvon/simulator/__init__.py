"""Simulated power hardware, made from the same device profiles that the agent reads."""
