"""Measured values over time: one wide row a sample, committed by COPY, read in buckets.

The tables carry no row-level security (COPY FROM and compression do not go with it); requests read
them only through views that join the stations which the caller may see.
"""
