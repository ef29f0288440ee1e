"""The agent as an OCPP charging station, to any backend.

| module                | owns |
|---|---|
| `port`                | what the station needs of the agent, and what it asks it to do |
| `device`              | settings a backend may read and change: 2.x's variables, 1.6's keys |
| `delivery`            | which fact goes next, how often it is tried, when it is put apart |
| `station`             | one station's dialogue over any number of connections, sans-IO |
| `speaker`, `readings` | what is said and done alike in every version |
| `v16`, `v201`         | the words of one version: facts to calls, requests to deeds and answers |
| `websocket`           | the connection: security profiles, reconnecting |
| `charger`             | the port on the real agent |
| `upload`              | logs, brought where a backend wants them |
| `assembly`            | put together from the configuration |

The journal stays the source of truth: a fact is done when the backend's CALLRESULT came.
"""
