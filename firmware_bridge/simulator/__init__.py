"""Boards with loaders, as strict as real ones and with their faults; no code is the host's."""
