"""(pure) The pytest command that runs just those (kernel, test) pairs again.

Laws: what comes from a file of results is only ever a test's id below the project, never an option, a path elsewhere
or a second word; a pair that no kernel or no file of the project has is an error that names its file of results.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from kmt.errors import ResultsError
from kmt.explain.causes import Group, Pair
from kmt.matrix import SIMULATED
from kmt.results import with_kernel
from kmt.text import visible

_SIMULATED = re.compile(r"\d{1,3}\.\d{1,3}" + re.escape(SIMULATED), re.ASCII)
"""A version that is no row can be simulated."""
_PATH = re.compile(r"(?!-|@|/)[^:\0]+\.py")


def chosen(groups: Sequence[Group], number: int | None) -> tuple[list[Pair], tuple[str, ...]]:
    """The pairs of one group (1 is the first), or of all; and the files that they are from. ResultsError: no such."""
    if number is not None and not 1 <= number <= len(groups):
        raise ResultsError(f"there is no group {number}", hint=f"the results have {len(groups)}")
    wanted = groups if number is None else [groups[number - 1]]
    pairs = [pair for group in wanted for pair in group.pairs]
    if not pairs:
        raise ResultsError("nothing in these results can be run again", hint="no test of them failed")
    return list(dict.fromkeys(pairs)), tuple(dict.fromkeys(file for group in wanted for file in group.files))


def arguments(pairs: Sequence[Pair], files: Sequence[str], known: Collection[str]) -> list[str]:
    """Words for pytest: the kernels, then the tests. ``known`` are the rows of this matrix. Raises ResultsError."""
    origin = ", ".join(files[:3])
    kernels = list(dict.fromkeys(kernel for kernel, _ in pairs))
    if strangers := [kernel for kernel in kernels if kernel not in known and not _SIMULATED.fullmatch(kernel)]:
        names = ", ".join(visible(kernel, 80) for kernel in strangers[:3])
        raise ResultsError(
            f"{origin}: no kernel {names} in this matrix", hint="the results are of another one; see kernels.toml"
        )
    for _, nodeid in pairs:
        if not is_plain(nodeid):
            raise ResultsError(f"{origin}: {visible(nodeid, 200)!r} is no test of this project")
    options = [word for kernel in kernels for word in ("--kernel", kernel)]
    return [*options, *(with_kernel(nodeid, kernel) for kernel, nodeid in pairs)]


def is_plain(nodeid: str) -> bool:
    """It can be nothing but the id of a test below the project: a relative path, ``::``, a name, on one line."""
    path, separator, name = nodeid.partition("::")
    plain = bool(name) and visible(nodeid, len(nodeid) + 1) == nodeid
    return bool(separator) and plain and _PATH.fullmatch(path) is not None and ".." not in path.split("/")
