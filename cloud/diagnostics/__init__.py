"""What OCPP stations tell of their condition: security events, transfers of firmware and logs,
monitors, messages on their displays, and notices of every other kind.
"""
