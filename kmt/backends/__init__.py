"""The ways to run a kernel, by name."""
