"""Outcomes for people and machines.

``table.py`` (pure) draws the table, ``summary.py`` writes it and the consoles of dead guests under pytest's own
summary, ``junit.py`` and ``json.py`` complete and write the files, ``live.py`` is the display of ``kmt.start``.
"""
