"""Charging transactions: a projection of their events, whatever order these come in."""
