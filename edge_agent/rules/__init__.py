"""The charging rules, sans-IO: events and time come in, actions come out."""
