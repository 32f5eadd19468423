"""Shared by all tests: Hypothesis without a wall-clock deadline (machines that run VMs are busy)."""

from hypothesis import settings

settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
