"""`karvon agent profile`: write, check, try and record the profile of a device."""
