"""The agent link in the cloud: receive, commit, acknowledge; greet; commands; credentials."""
