import os
import subprocess
import sys
import threading
import time

import pytest

from kmt import paths


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


def test_the_cache_is_private_and_where_it_was_named(cache):
    assert paths.cache("kernels") == cache / paths.LAYOUT / "kernels"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_of_an_older_version_is_seen_and_never_read(cache):
    old = cache / "v0" / "kernels"
    old.mkdir(parents=True)
    (old / "6.1").write_text("from another time")
    assert list(paths.cache("kernels").iterdir()) == []
    assert paths.older_layouts() == [cache / "v0"]


def test_what_is_published_appears_whole_or_not_at_all(cache):
    target = paths.cache("room") / "thing"
    with paths.published(target) as work:
        work.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"

    def fails():
        with paths.published(target) as work:
            work.write_text("never")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fails()
    assert target.read_text() == "half"
    assert [p.name for p in target.parent.iterdir()] == ["thing"]


def test_a_directory_replaces_the_one_before(cache):
    target = paths.cache("room") / "tree"
    for name in ("one", "two"):
        with paths.published(target) as work:
            work.mkdir()
            (work / name).touch()
    assert [p.name for p in target.iterdir()] == ["two"]


def test_a_file_never_takes_the_place_of_a_directory(tmp_path):
    (tmp_path / "mine" / "deep").mkdir(parents=True)

    def writes():
        with paths.published(tmp_path / "mine") as work:
            work.write_text("results")

    with pytest.raises(IsADirectoryError):
        writes()
    assert (tmp_path / "mine" / "deep").is_dir()


def test_one_maker_at_a_time(cache):
    seen = []

    def make(number):
        with paths.locked("thing"):
            seen.append(("in", number))
            seen.append(("out", number))

    threads = [threading.Thread(target=make, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [word for word, _ in seen] == ["in", "out"] * 8
    assert all(seen[i][1] == seen[i + 1][1] for i in range(0, 16, 2))


def test_what_a_killed_maker_left_is_removed_by_the_next(cache):
    target = paths.cache("room") / "thing"
    code = f"from pathlib import Path\nfrom kmt import paths\nwith paths.published(Path({str(target)!r})) as work:\n"
    code += "    work.mkdir(); print(flush=True); input()"
    maker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    maker.stdout.readline()
    (left,) = paths.leftovers()
    old = time.time() - 3600
    os.utime(left, (old, old))
    with paths.published(target) as work:
        work.mkdir()
    assert paths.leftovers() == [left], "its maker lives"
    maker.kill()
    maker.wait()
    maker.stdin.close()
    maker.stdout.close()
    with paths.published(target) as work:
        work.mkdir()
    assert paths.leftovers() == []


def test_a_directory_made_this_moment_is_left_alone(cache):
    new = paths.cache("room") / ".thing.new"
    new.mkdir()
    assert not paths.sweep(new)
    assert new.is_dir()
