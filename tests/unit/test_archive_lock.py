import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.archive import lock
from kmt.archive.packages import Package
from kmt.config import Config
from kmt.errors import ConfigError
from kmt.matrix import Row, Source

HERE = Path("/somewhere/kernels.lock.json")
ROW = Row("6.1", "6.1", suites=("bookworm",))

words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,20}", fullmatch=True)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
found_packages = st.builds(
    Package, words, words, words, words, words, st.integers(1, 2**40), digests, st.integers(0, 2**30), st.just(())
)
pins = st.builds(lock.Pin, st.text(), words, st.lists(found_packages, min_size=1, max_size=3).map(tuple))
PIN = lock.Pin(lock.asks(ROW), "6.1.0-1-amd64", (Package("a", "1", "amd64", "bookworm", "p/a.deb", 1, "0" * 64),))


@given(st.dictionaries(words, pins, max_size=4))
def test_what_was_written_is_read_back_and_order_does_not_matter(written):
    text = lock.dump(written)
    assert lock.parse(text, HERE) == written
    assert lock.dump(dict(reversed(written.items()))) == text


def test_a_pin_counts_while_its_row_asks_for_the_same(tmp_path):
    path = tmp_path / "lock.json"
    path.write_text(lock.dump({"6.1": PIN}))
    assert lock.pinned(path, ROW) == PIN
    changed = [
        Row("6.1", "6.1", suites=("bookworm", "bookworm-security")),
        Row("6.1", "6.1", "amd64", suites=("bookworm",)),
        Row("6.1", "6.1", suites=("bookworm",), archive=Source("http://localhost/x", Path("/k"))),
        Row("other", "6.1", suites=("bookworm",)),
    ]
    assert [lock.pinned(path, row) for row in changed] == [None] * 4
    assert lock.pinned(tmp_path / "none", ROW) is None


def test_a_row_written_leaves_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "deep" / "lock.json"
    lock.write(path, Row("a"), PIN)
    lock.write(path, Row("b"), PIN)
    assert set(lock.read(path)) == {"a", "b"}


def test_it_lies_in_the_cache_or_where_the_project_says(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    assert lock.location(Config(tmp_path)).is_relative_to(tmp_path / "cache")
    assert lock.location(Config(tmp_path, lock="kernels.lock")) == tmp_path / "kernels.lock"


def entry(**changes):
    one = json.loads(lock.dump({"6.1": PIN}))["kernels"]["6.1"]
    one["packages"][0] |= changes
    return json.dumps({"version": 1, "kernels": {"6.1": one}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1"),
        ("[]", "not a lock file"),
        ('{"version": 2, "kernels": {}}', "version 1"),
        ('{"version": 1}', "kernels must be"),
        ('{"version": 1, "kernels": {"6.1": 3}}', "6.1"),
        ('{"version": 1, "kernels": {"6.1": {"wanted": "", "release": "../x", "packages": []}}}', "release"),
        ('{"version": 1, "kernels": {"6.1": {"wanted": "", "release": "6.1", "packages": []}}}', "no packages"),
        ('{"version": 1, "kernels": {"6.1": {"wanted": "", "release": "6.1", "packages": [3]}}}', "an object"),
        (entry(path="../../etc/passwd"), "no sound package"),
        (entry(path="/etc/passwd"), "no sound package"),
        (entry(name="../a"), "no sound package"),
        (entry(version="1/../2"), "no sound package"),
        (entry(sha256="x"), "no sound package"),
        (entry(size=0), "no sound package"),
        (entry(size=True), "size"),
        (entry(size="1"), "size"),
        (entry(installed="x"), "installed"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(text, said):
    with pytest.raises(ConfigError) as caught:
        lock.parse(text, HERE)
    assert str(HERE) in caught.value.message
    assert said in caught.value.message
    assert "resolve" in caught.value.hint


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(words, s)
    )
)
def test_any_json_is_a_lock_file_or_a_typed_error(value):
    for text in (
        json.dumps(value),
        json.dumps({"version": 1, "kernels": value}),
        json.dumps({"version": 1, "kernels": {"a": value}}),
    ):
        try:
            lock.parse(text, HERE)
        except ConfigError:
            continue
