"""Releases as their makers see them: keys, images, signatures, publication. Needs no cloud."""
