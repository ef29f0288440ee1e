"""OCPP 1.6J, 2.0.1, 2.1: framing, typed payloads, and messages that no longer show the version."""
