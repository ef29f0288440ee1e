"""The PowerBoard port and its drivers."""
