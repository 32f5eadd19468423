"""Mapped files from the text of /proc/<pid>/maps, and the rules they are held against."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.watcher.errors import RuleError
from harness.watcher.identity import FilePath
from harness.watcher.maps import map_file, mapped_files, mappings
from harness.watcher.rules import TLS_LIBRARIES, Rule, first_match

TEXT = b"""\
55d0c0a00000-55d0c0a28000 r--p 00000000 08:01 131 /usr/bin/cat
55d0c0a28000-55d0c0a50000 r-xp 00028000 08:01 131 /usr/bin/cat
7f1000000000-7f1000021000 rw-p 00000000 00:00 0
7f1000100000-7f1000121000 r--p 00000000 08:01 132                        /usr/lib/libssl.so.3
7f1000200000-7f1000221000 r--p 00000000 08:01 133 /usr/lib/old.so (deleted)
7f1000300000-7f1000321000 r--p 00000000 08:01 134 /home/with space/lib.so
7f1000400000-7f1000421000 r--p 00000000 08:01 135 /odd/new\\012line.so
7f1000500000-7f1000521000 r--p 00000000 08:01 136 /odd/\xff.so
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
"""


def test_lines_that_count() -> None:
    found = mapped_files(TEXT)
    assert found == ["/usr/bin/cat", "/usr/lib/libssl.so.3", "/odd/new\nline.so", os.fsdecode(b"/odd/\xff.so")]


def test_the_first_mapping_of_each_path_is_found_again() -> None:
    assert mappings(TEXT)["/usr/bin/cat"] == "55d0c0a00000-55d0c0a28000"
    ranges = mappings(Path("/proc/self/maps").read_bytes()).values()
    assert {map_file(at) for at in ranges} <= {entry.name for entry in Path("/proc/self/map_files").iterdir()}
    assert map_file("00400000-00452000") == "400000-452000"
    for wrong in ("", "7f", "x-y", "1-2-3"):
        with pytest.raises(ValueError, match=r"."):
            map_file(wrong)


def test_this_process() -> None:
    found = mapped_files(Path("/proc/self/maps").read_bytes())
    assert found
    assert len(found) == len(set(found))
    here = Path(os.path.realpath("/proc/self/exe"))
    assert str(here) in found


some_lines = st.lists(st.sampled_from([*TEXT.split(b"\n"), b"a b c d 1 e", b"a b c d 0 e"])).map(b"\n".join)
texts = st.one_of(st.binary(), some_lines)


@given(texts)
def test_exactly_six_fields_and_an_inode(maps: bytes) -> None:
    found = mapped_files(maps)
    assert len(found) == len(set(found))
    candidates = [line for line in maps.split(b"\n") if re.fullmatch(rb"\s*(\S+\s+){4}(?!0\s)\S+\s+\S+\s*", line)]
    counted = [line for line in candidates if len(line.split()) == 6]
    assert set(found) == {os.fsdecode(line.split()[5].replace(b"\\012", b"\n")) for line in counted}


def nothing(_: FilePath) -> None:
    """A callback."""


def test_the_first_rule_that_matches_counts() -> None:
    rules = [Rule.of(pattern, nothing, nothing) for pattern in (*TLS_LIBRARIES, "ssl")]
    assert first_match(rules, "/usr/lib/libssl.so.3") is rules[0]
    assert first_match(rules, "/usr/lib/libcrypto.so") is rules[1]
    assert first_match(rules, "/usr/lib/libssl-so") is rules[3]
    assert first_match(rules, "/usr/lib/libc.so") is None
    assert first_match([], "x") is None


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "*", "[z-a]"])
def test_a_rule_that_is_no_pattern(pattern: str) -> None:
    with pytest.raises(RuleError, match="no regular expression"):
        Rule.of(pattern, nothing, nothing)
