"""(pure) The groups of ``causes.py`` as lines for people.

Laws: each group says its cause, the oldest and the newest kernel that fail, the one line that matters and the command
that runs it again; what results hold arrives as text (``kmt/text.py``); a group takes at most ``TESTS_SHOWN`` lines
for its tests, and says how many more there are; no line begins with what is not ours (a CI may read it as a command).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from kmt.explain.causes import Cause, Group
from kmt.text import visible

TESTS_SHOWN = 5
_MEANS = {
    Cause.PANIC: "the kernel panicked",
    Cause.VERIFIER: "the verifier refused a program",
    Cause.BUILD: "the eBPF programs were not built",
    Cause.TEST: "a test failed",
    Cause.HANG: "the guest fell silent or got not done in time",
    Cause.LOST: "the guest, or the way to it, was lost",
    Cause.ARCHIVE: "the kernel could not be had",
}


def lines(groups: Sequence[Group], *, kernels: int, command: Sequence[str]) -> Iterator[str]:
    """All of it. ``kernels``: how many the results are of; ``command``: what runs a group again, without its number."""
    if not groups:
        yield f"nothing failed on {count(kernels, 'kernel')}"
        return
    for number, group in enumerate(groups, 1):
        yield f"{number}. {headline(group)}"
        yield f"   why: {visible(group.line)}"
        if group.hint:
            yield f"   hint: {visible(group.hint)}"
        shown = group.tests[:TESTS_SHOWN]
        yield from (f"     - {visible(test)}" for test in shown)
        if len(group.tests) > len(shown):
            yield f"     - and {len(group.tests) - len(shown)} more"
        if group.pairs:
            yield f"   again: {shlex.join([*command, '--group', str(number)])}"
        yield ""
    failing = {kernel for group in groups for kernel in group.failing}
    yield f"{count(len(groups), 'cause')} on {count(len(failing), 'kernel')} of {kernels}"


def headline(group: Group) -> str:
    """``verifier: the verifier refused a program: 3 tests on 6.12 to 7.3 (2 kernels); passes on 5.10``."""
    tests = f"{count(len(group.tests), 'test')} on " if group.tests else ""
    if len(group.failing) > 1:
        where = f"{visible(group.failing[0])} to {visible(group.failing[-1])} ({len(group.failing)} kernels)"
    else:
        where = visible(group.failing[0])
    passes = f"; passes on {', '.join(visible(k) for k in group.passing)}" if group.passing else ""
    return f"{group.cause}: {_MEANS[group.cause]}: {tests}{where}{passes}"


def count(number: int, word: str) -> str:
    """``1 test``, ``2 tests``."""
    return f"{number} {word}{'' if number == 1 else 's'}"
