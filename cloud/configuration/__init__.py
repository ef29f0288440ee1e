"""What OCPP stations hold: variables, charging profiles and limits, reservations, local lists.

It is what they told last, with when; a station may have changed since.
"""
