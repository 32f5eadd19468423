"""Warm memory snapshots: a kernel that has booted once is in memory again in a tenth of a second.

``key.py`` says which snapshot fits a machine, ``store.py`` keeps them, ``ram.py`` handles the files that guest memory
lies in, ``freezing.py`` takes a running machine down to its state and back. Which machine, and when: that is
``kmt/backends/qemu.py``'s; what a guest does about it: ``kmt/guest/warm.py`` and ``kmt/guest/fresh.py``.
"""
