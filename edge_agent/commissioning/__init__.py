"""Putting a controller into service and out of it again, step by step, each step kept on disk.

Nothing of it runs in the agent itself but the renewal of the certificate.
"""
