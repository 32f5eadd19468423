"""From a row of the matrix to a kernel on disk: resolve, fetch, verify, unpack.

``fetch`` is the way through it; ``mirror`` and ``apt`` speak to the archive, ``packages`` and ``resolve`` (pure)
choose, ``lock`` remembers, ``unpack`` and ``local`` make a ``Kernel`` of files. What a row is: ``kmt/matrix.py``.
"""

from kmt.archive.fetch import Description, Progress, describe, fetch_packages, prepare, prepare_all
from kmt.archive.mirror import sources

__all__ = ["Description", "Progress", "describe", "fetch_packages", "prepare", "prepare_all", "sources"]
