"""OCPP-J on the wire, sans-IO: versions, messages, tolerances, and the calls of one connection.

| module          | owns                                                                          |
|-----------------|-------------------------------------------------------------------------------|
| `version`       | the WebSocket subprotocols                                                    |
| `shapes`        | what the official JSON schemas demand, as a small language of our own         |
| `schemas`       | typed messages built from it; strict: parser and validator in one             |
| `deviations`    | what chargers do against the specification, by name                           |
| `timestamps`    | every way in which a charger wrote a time                                     |
| `meanings`      | what stations' own words mean                                                 |
| `tolerance`     | reads what deviates, and says in what                                         |
| `frames`        | from text to CALL, CALLRESULT, CALLERROR, SEND, whatever is wrong with it     |
| `events`        | what comes out of a connection                                                |
| `rpc`           | one connection's calls in both directions                                     |
| `messages`      | what is said, whichever version says it                                       |
| `dialect`       | from a version's messages to those and back: `v16`, `v201`, `v21`             |
| `sampling`      | measured values of any version                                                |
| `device_model`  | 2.x's components and variables                                                |
| `asks`          | what else stations are asked, with its words: `asks_v16`, `asks_v2`           |
| `actions`       | which actions go down to stations, which never twice, what in them is secret  |
| `effects`       | what an answer means for what a station holds from then on                    |

Receive liberally, send strictly.
"""
