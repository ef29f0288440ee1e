"""The technician's commands, `karvon agent …`."""
