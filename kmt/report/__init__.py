"""Outcomes for people and machines: terminal table, JUnit, JSON."""
