"""The agent on a charger's controller: power hardware, charging rules, journal, uplinks."""
