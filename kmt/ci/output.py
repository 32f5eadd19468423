r"""(pure) Words for the logs and pages of GitHub and GitLab: sections, annotations, a step's summary; plain elsewhere.

Laws: what comes from tests, guests and files arrives as text: no line of it is a command of the provider, ends a
section or becomes markup; where there is no provider, sections are a heading and their lines, and nothing else is said.
Sources: GitHub's "workflow commands" (``::group::``, ``::stop-commands::``; ``%``, CR and LF, in properties ``:`` and
``,`` too, are written in hex), GitLab's "custom collapsible sections" (``\e[0Ksection_start:TIME:NAME\r\e[0KHEADING``).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmt.explain.causes import Group
from kmt.explain.rerun import is_plain
from kmt.explain.words import headline
from kmt.text import visible

ANNOTATIONS = 10
"""GitHub shows so many errors of a step."""
MOST_SUMMARY = 900_000
"""Bytes; GitHub takes 1 MiB of a step and drops all of it where there is more."""
_TESTS = 20


@dataclass(frozen=True)
class Log:
    """Where we print: ``provider`` is ``github``, ``gitlab`` or empty; ``token`` is a secret of this process."""

    provider: str
    token: str

    @classmethod
    def of(cls, environ: Mapping[str, str], token: str) -> Log:
        """By the variables that providers set."""
        github, gitlab = environ.get("GITHUB_ACTIONS") == "true", environ.get("GITLAB_CI") == "true"
        return cls("github" if github else "gitlab" if gitlab else "", token)

    def guarded(self, lines: Sequence[str]) -> list[str]:
        """Lines in which nothing is a command: GitHub obeys ``##[...]`` anywhere in one, not at its begin alone."""
        if self.provider != "github":
            return list(lines)
        return [f"::stop-commands::{self.token}", *lines, f"::{self.token}::"]

    def section(self, title: str, lines: Sequence[str], *, now: int) -> list[str]:
        """A heading that the lines can be folded under. ``now`` is Unix time."""
        said, heading = [visible(line) for line in lines], visible(title, 200)
        if self.provider == "github":
            return [f"::group::{_message(heading)}", *self.guarded(said), "::endgroup::"]
        if self.provider == "gitlab":
            name = f"{re.sub(r'[^a-z0-9]+', '_', title.lower())[:40]}_{self.token[:8]}"
            start = f"\x1b[0Ksection_start:{now}:{name}[collapsed=true]\r\x1b[0K{heading}"
            return [start, *said, f"\x1b[0Ksection_end:{now}:{name}\r\x1b[0K"]
        return [f"--- {heading}", *said]

    def annotations(self, groups: Sequence[Group]) -> list[str]:
        """One error a cause, the gravest first; on GitHub only, for the others have no such thing."""
        if self.provider != "github":
            return []
        shown = [_annotation(group) for group in groups[:ANNOTATIONS]]
        more = len(groups) - len(shown)
        return [*shown, *([f"::notice title=more causes::{more} more; the step's summary has all"] if more else [])]


def _annotation(group: Group) -> str:
    path = group.tests[0].partition("::")[0] if group.tests and is_plain(group.tests[0]) else ""
    file = f"file={_property(path)}," if path else ""
    text = "\n".join([visible(group.line), *(visible(test, 300) for test in group.tests[:_TESTS])])
    return f"::error {file}title={_property(headline(group))}::{_message(text)}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def summary(table: str, groups: Sequence[Group], *, most: int = MOST_SUMMARY) -> str:
    """GitHub's step summary, in Markdown: all of it is preformatted HTML, in which nothing is markup.

    ``most`` bytes at most, but for the line that says so; nothing where not even that may be.
    """
    if most <= 0:
        return ""
    parts = ["## Kernels\n", _preformatted(table)]
    for number, group in enumerate(groups, 1):
        tests = [visible(test, 300) for test in group.tests[:_TESTS]]
        more = len(group.tests) - len(tests)
        lines = [f"{number}. {headline(group)}", visible(group.line), *tests, *([f"and {more} more"] if more else [])]
        parts.append(_preformatted("\n".join(lines)))
    text = ""
    for part in parts:
        if len((text + part).encode()) > most:
            return text + "\n_and more than fits here: see the log_\n"
        text += part
    return text


def _preformatted(text: str) -> str:
    lines = [visible(line) for line in text.splitlines()]
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>\n\n"
