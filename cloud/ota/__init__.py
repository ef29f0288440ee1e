"""Updates over the air: signed releases as they are served, who gets which, and how it went.

The cloud holds no key that makes software genuine. It stores what the release keys have signed,
signs how fresh that is and who is to install what, and counts what stations tell of it.
"""
