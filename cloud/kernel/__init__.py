"""What every module stands on: database, commit path, events, bus, errors, HTTP, supervision."""
