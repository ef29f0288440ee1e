"""The device-profile language: what a charger's or meter's registers mean, as data.

`loading` reads a profile and refuses a wrong one with file, line and reason; `binding` fixes it to
one device (firmware, options, EVSE numbers); `planning` joins registers into requests; `values`
and `states` turn words into readings; `commands` turns wishes into writes. Nothing here does I/O.
"""
