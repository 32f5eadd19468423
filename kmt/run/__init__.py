"""A run: start at ``pool.py``; then ``kernel.py`` (one kernel, its phases) and ``guest.py`` (one pytest session)."""
