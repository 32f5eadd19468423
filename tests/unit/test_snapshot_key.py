"""A snapshot's key: anything that could make it stale makes it another."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.snapshot.key import Ingredients, key

MADE_OF = Ingredients(
    qemu="QEMU emulator version 7.2.22 1234 5678",
    accelerator="tcg",
    processor="flags: sse2",
    kernel="digest 6.1.0",
    files={"/cache/root,1.erofs": "root 10 1", "/cache/vmlinuz": "vmlinuz 5 2"},
    argv=["qemu", "-m", "512M", "-drive", "filename=/cache/root,,1.erofs,ro", "-kernel", "/cache/vmlinuz"],
)


@pytest.mark.parametrize("changed", ["qemu", "accelerator", "processor", "kernel"])
def test_each_ingredient_counts(changed):
    assert key(replace(MADE_OF, **{changed: "other"})) != key(MADE_OF)


def test_what_is_loaded_besides_counts():
    assert len({key(replace(MADE_OF, modules=modules)) for modules in ((), ("grpc",), ("grpc", "tuf"))}) == 3


@pytest.mark.parametrize("position", range(len(MADE_OF.argv)))
def test_each_word_of_the_command_line_counts(position):
    argv = list(MADE_OF.argv)
    argv[position] += "x"
    assert key(replace(MADE_OF, argv=argv)) != key(MADE_OF)


@pytest.mark.parametrize("path", MADE_OF.files)
def test_each_files_content_counts(path):
    assert key(replace(MADE_OF, files={**MADE_OF.files, path: "edited"})) != key(MADE_OF)


def test_where_the_cache_lies_does_not():
    files = {path.replace("/cache", "/elsewhere"): identity for path, identity in MADE_OF.files.items()}
    argv = [word.replace("/cache", "/elsewhere") for word in MADE_OF.argv]
    assert key(replace(MADE_OF, files=files, argv=argv)) == key(MADE_OF)


def test_two_files_that_change_places_are_another_machine():
    one, other = MADE_OF.files
    files = {one: MADE_OF.files[other], other: MADE_OF.files[one]}
    assert key(replace(MADE_OF, files=files)) != key(MADE_OF)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=4), st.lists(st.text(max_size=5), min_size=1, max_size=4))
def test_words_never_run_into_each_other(one, other):
    same = key(replace(MADE_OF, argv=one)) == key(replace(MADE_OF, argv=other))
    assert same == (one == other)
