"""Kernels as data: profiles recorded in real ones, gates with their sources, and what follows from both.

The only part of ``kmt`` that may import from ``harness``.
"""
