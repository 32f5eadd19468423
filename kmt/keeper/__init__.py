"""Guests that outlive the run that started them: ``kmt.start --keep``.

A keeper is one process a project, with a socket in its room of the register of runs, so that ``kmt.status``,
``kmt.logs`` and ``kmt.stop`` see it like any run. ``server`` owns the guests, ``client`` finds the keeper and leases
from it, ``messages`` is what they say to each other. ``kmt/backends/kept.py`` makes a lease look like any guest.
"""
