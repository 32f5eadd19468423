"""(pure) Secrets taken out of text before it leaves this machine.

Laws: of the environment only what is on a list is kept; what looks like a secret is replaced wherever it stands; the
user's name and home and this machine's name are replaced; text without any of these is unchanged, and redacting twice
is redacting once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

KEPT = ("KMT_*", "LANG", "LC_*", "TZ", "CI", "GITHUB_ACTIONS", "GITLAB_CI", "TERM", "PYTHON", "PYTHONHASHSEED", "SHELL")
"""Variables that are of use in a bug report; all others, whatever they are, stay here."""
HIDDEN = "[redacted]"
_WORD = r"(?:passw(?:or)?d|passphrase|secret|token|(?:api|access|private)[-_]?key|credential)[\w-]{0,64}"
"""A name that says what its value is, and what such names go on with."""
_GAP = r"(?:\s|(?:\x1b|\\u001b|\\x1b)\[[0-9;]*m)*"
"""Blanks and colours, also as JSON and we ourselves write these."""
_QUOTE = r"(?:[\[({]\s*(?=\\*[\"']))?[bruf]{0,2}(?P<q>\\*[\"'])"
"""What a value begins with that is quoted, in a string that is itself quoted too."""
_VALUE = r"(?(q)(?:(?!(?<!\\)(?P=q))[^\n])*|[^\s\"'&;,]+)"
_SECRETS = tuple(
    re.compile(pattern)
    for pattern in (
        # Credentials in an address; a password may hold slashes, and then at signs too.
        r"(://)(?:[^\s/:@\"']{0,300}:[^\s\"']{0,300}|[^/\s@]+)(?=@)",
        r"(?s)()-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
        # Its begin was cut off.
        r"(?s)\A()(?:(?!-----BEGIN ).)*?-----END [A-Z ]{0,40}PRIVATE KEY-----",
        # Tokens that say whose they are: GitHub's, GitLab's, AWS's, Slack's, PyPI's; JSON web tokens.
        r"()\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|AKIA[A-Z0-9]{12,}|xox[abprs]-[\w-]{8,})",
        r"()\b(?:pypi-[\w-]{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)",
        r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}",
        # A header's scheme and what follows it.
        rf"(?i)(\bauthorization\\*[\"']?{_GAP}[:=]{_GAP}\\*[\"']?)(?:\[redacted\]|[^\s\"'\\,]+(?:[ \t]+[^\s\"'\\,]+)?)",
        # A word that says what it is, and its value: after a sign, or after an option the next word.
        rf"(?i)({_WORD}\\*[\"']?{_GAP}[:=]{_GAP}(?:{_QUOTE})?){_VALUE}",
        rf"(?i)((?<![\w-])--?[\w-]{{0,64}}?{_WORD}(?:\\*[\"']?,\s*|\s+)(?!-)(?:{_QUOTE})?){_VALUE}",
    )
)
"""The first group stays, what is behind it does not."""


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that may leave."""
    return {name: environ[name] for name in sorted(environ) if any(fnmatchcase(name, glob) for glob in KEPT)}


def text(said: str, names: Mapping[str, str]) -> str:
    """Without secrets; ``names`` are words to be replaced (home, user, machine) by what stands for them."""
    for pattern in _SECRETS:
        said = pattern.sub(rf"\1{HIDDEN}", said)
    for name in sorted(names, key=len, reverse=True):
        if len(name) > 2:
            word = names[name].replace("\\", r"\\")
            said = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, said)
    return said
