"""A whole network on one machine: cloud, agents and simulated boards as separate real processes."""
