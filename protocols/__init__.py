"""What goes over a wire: units, the agent link, device profiles. Pure; imports nothing of ours."""
