"""The agent's decisions, without I/O: what follows from an event at a given time.

Nothing here reads a clock, draws a number or waits: stamps and a source of identities come in as
arguments, actions go out as values. `edge_agent.loop` carries them out.
"""
