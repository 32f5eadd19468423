"""The TCP tracer."""
