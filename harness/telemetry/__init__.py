"""Counters, gauges and groups."""
