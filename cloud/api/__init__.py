"""The REST application: assembles the modules' routes and reads the event log."""
