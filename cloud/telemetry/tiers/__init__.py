"""How telemetry ages: hot rows, hour blocks, roll-ups by minute and by hour.

`fence` and `until` (telemetry.tier) say how far the roll-ups go; hours that got samples after they
were rolled up stand in telemetry.late until the keeper has rolled them up again. A reader takes a
roll-up where one holds exactly what was asked for, and samples elsewhere (`plan`). The keeper moves
times from tier to tier in short transactions that may be cut off anywhere.
"""
