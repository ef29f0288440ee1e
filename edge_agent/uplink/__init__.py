"""Ways to the cloud: drain the outbox, receive commands."""
