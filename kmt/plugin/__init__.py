"""A pytest session with ``--kernel``: start at ``session.py``; the options are in ``kmt/pytest_plugin.py``."""
