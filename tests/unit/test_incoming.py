"""Tars of hostile guests: what is taken, what is named, and that nothing but a typed error ever comes of them."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.errors import AgentError
from kmt.guest.wire import Frame, Kind
from kmt.run import incoming


def member(name="a", content=b"x", **more):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def tar(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def unpacked(data, dest):
    frames = iter([data[n : n + 4096] for n in range(0, len(data), 4096)] + [b""])
    return incoming.unpack(lambda: Frame(Kind.DATA, {}, next(frames)), dest)


@pytest.mark.parametrize("headers", [{"GNU.sparse.map": "x"}, {"GNU.sparse.size": "x"}])
def test_headers_that_tarfile_trips_over_are_a_tar_that_is_none(tmp_path, headers):
    with pytest.raises(AgentError, match="is no tar"):
        unpacked(tar(member(pax_headers=headers)), tmp_path / "got")


@pytest.mark.parametrize("name", ["a\0b", "b" * 300, "fine/below"])
def test_a_name_that_no_file_can_have_is_named_and_the_others_come(tmp_path, name):
    evil = member("evil", pax_headers={"path": name})
    files, left = unpacked(tar(member("fine"), evil, member("last")), tmp_path / "got")
    assert [path.name for path in files] == ["fine", "last"]
    (said,) = left
    assert repr(name) in said


def test_this_machines_own_trouble_is_not_the_guests():
    with pytest.raises(AgentError, match=r"cannot be kept: No such file") as caught:
        unpacked(tar(member()), Path("/proc/no/such"))
    assert "no tar" not in str(caught.value)


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "e"}
WHOLE = tar(
    member("a/b", b"x" * 600), member("c", b"", type=tarfile.LNKTYPE, linkname="a/b"), member("d", pax_headers=SPARSE)
)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(WHOLE)))
def test_a_damaged_tar_is_files_or_a_typed_error(tmp_path_factory, changes, length):
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    dest = tmp_path_factory.mktemp("tar") / "got"
    try:
        files, _ = unpacked(bytes(data[:length]), dest)
    except AgentError:
        return
    assert all(path.is_relative_to(dest) for path in files)
