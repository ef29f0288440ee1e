"""Whose id tokens may charge, and the list that lets agents decide when the cloud is away.

Other modules hold a token's reference, never its value, so that a person can be erased here.
"""
