"""Which part of the tests is this job's, where a kernel's tests are divided over several (``--kernel-part``).

Laws: each module is in exactly one part; all jobs that collect the same tests divide them in the same way; no part
has more tests than an even share and the largest module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmt.errors import ConfigError
from kmt.plugin.items import KernelItem


@dataclass(frozen=True)
class Part:
    """Number ``number`` of ``of``, from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``2/3``. ConfigError when it is none."""
        match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text, re.ASCII)
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigError(f"a part of the tests is {text!r}", hint="write 2/3 for the second of three")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def modules(self, tests: Mapping[str, int]) -> set[str]:
        """Of modules with their numbers of tests, those of this part."""
        loads = [0] * self.of
        mine = set()
        for module in sorted(tests, key=lambda name: (-tests[name], name)):
            least = loads.index(min(loads))
            loads[least] += tests[module]
            if least == self.number - 1:
                mine.add(module)
        return mine

    def others(self, items: Sequence[KernelItem]) -> list[KernelItem]:
        """The items that are not of this part."""
        mine = self.modules(Counter(_module(item) for item in items))
        return [item for item in items if _module(item) not in mine]


def _module(item: KernelItem) -> str:
    return item.kmt_id.split("::", 1)[0]
