"""Puts firmware into power boards: a port for loaders, back ends, a plan that survives cuts.

Everything here blocks: to flash a board is one long sequence of questions and answers on one line.
Whoever has an event loop runs it in a thread.
"""
