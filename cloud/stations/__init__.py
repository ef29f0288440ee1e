"""The network's things: sites, stations, EVSEs, connectors; how a station joins; how it stands now.

Also owns each boot's clock, since every stamp of an agent is read with it.
"""
