"""The BTF parser: what a writer of our own wrote comes back, and no bytes break it."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf.btf_parser import Btf, Variable
from harness.errors import FormatError
from harness.kernel_api import Signature

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, PROTO, VAR, DATASEC = range(1, 16)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)


class Writer:
    """Makes BTF; each method returns the id of the type it added."""

    def __init__(self, order="<"):
        self.order, self.types, self.strings, self.count = order, b"", b"\0", 0

    def name(self, text):
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text.encode()) - 1

    def words(self, *words):
        return struct.pack(f"{self.order}{len(words)}I", *words)

    def add(self, kind, name="", third=0, *, vlen=0, flag=0, rest=()):
        self.types += self.words(self.name(name), flag << 31 | kind << 24 | vlen, third, *rest)
        self.count += 1
        return self.count

    def function(self, name, parameters, result=0):
        rest = [word for type_id in parameters for word in (0, type_id)]
        return self.add(FUNC, name, self.add(PROTO, "", result, vlen=len(parameters), rest=rest))

    def done(self, version=1):
        header = struct.pack(
            self.order + "HBBIIIII", 0xEB9F, version, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


def writer(order="<"):
    w = Writer(order)
    w.int = w.add(INT, "int", 4, rest=[32])
    w.sock = w.add(STRUCT, "sock", 4, vlen=1, rest=[w.name("state"), w.int, 0])
    return w


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_function_in_words(order):
    w = writer(order)
    const = w.add(PTR, "", w.add(CONST, "", w.add(VOLATILE, "", w.sock)))
    size = w.add(TYPEDEF, "size_t", w.int)
    w.function("send", [const, size, w.add(PTR)], w.add(PTR, "", w.add(PTR, "", w.int)))
    btf = Btf.parse(w.done())
    assert btf.function("send") == Signature(("struct sock *", "size_t", "void *"), "int **")
    assert str(btf.function("send")) == "int ** (struct sock *, size_t, void *)"
    assert btf.function("receive") is None
    assert len(btf) == w.count


@pytest.mark.parametrize(
    ("kind", "flag", "words"),
    [
        (STRUCT, 0, "struct x"),
        (UNION, 0, "union x"),
        (ENUM, 0, "enum x"),
        (ENUM64, 0, "enum x"),
        (FWD, 0, "struct x"),
        (FWD, 1, "union x"),
        (TYPEDEF, 0, "x"),
        (FLOAT, 0, "x"),
    ],
)
def test_kinds_in_words(kind, flag, words):
    w = writer()
    w.function("f", [w.add(kind, "x", flag=flag)])
    assert Btf.parse(w.done()).function("f").parameters == (words,)


def test_no_and_variable_parameters():
    w = writer()
    w.function("none", [])
    w.function("printk", [w.add(PTR, "", w.int), 0], w.int)
    btf = Btf.parse(w.done())
    assert str(btf.function("none")) == "void (void)"
    assert str(btf.function("printk")) == "int (int *, ...)"


def test_of_two_functions_the_first_counts():
    w = writer()
    w.function("f", [w.int])
    w.function("f", [])
    assert Btf.parse(w.done()).function("f").parameters == ("int",)


def test_a_name_inside_another_is_another():
    w = writer()
    w.function("tcp_connect", [w.int])
    btf = Btf.parse(w.done())
    assert btf.functions(["connect", "tcp_conn", "", "int"]) == {}


def test_a_name_may_be_the_tail_of_a_string():
    """A writer may let "connect" point into "tcp_connect"."""
    w = writer()
    proto = w.add(PROTO)
    tail = w.name("tcp_connect") + 4
    w.types += w.words(tail, FUNC << 24, proto)
    assert Btf.parse(w.done()).function("connect") == Signature((), "void")


def test_every_kind_is_stepped_over():
    w = writer()
    w.add(ARRAY, rest=[w.int, w.int, 3])
    w.add(ENUM, "e", 4, vlen=2, rest=[0, 1, 0, 2])
    w.add(ENUM64, "e", 8, vlen=1, rest=[0, 1, 0])
    w.add(VAR, "v", w.int, rest=[1])
    w.add(DECL_TAG, "t", w.int, rest=[0])
    w.add(TYPE_TAG, "t", w.int)
    w.add(RESTRICT, "", w.int)
    w.function("last", [w.int])
    assert Btf.parse(w.done()).function("last") is not None


def test_variables_of_a_section():
    w = writer()
    one, two = w.add(VAR, "one", w.int, rest=[1]), w.add(VAR, "two", w.int, rest=[1])
    w.add(DATASEC, ".rodata", 12, vlen=2, rest=[one, 0, 4, two, 8, 4])
    btf = Btf.parse(w.done())
    assert btf.section(".rodata") == {"one": Variable(0, 4), "two": Variable(8, 4)}
    assert btf.section(".bss") == {}


def broken(kind):
    w = writer()
    if kind == "unknown kind":
        w.add(27, "x")
    elif kind == "loop":
        w.types += w.words(0, CONST << 24, w.count + 1)
        w.count += 1
        w.function("f", [w.count])
    elif kind == "type out of range":
        w.function("f", [9999])
    elif kind == "name out of range":
        w.types += w.words(1 << 20, STRUCT << 24, 0)
        w.count += 1
        w.function("f", [w.count])
    elif kind == "function of no prototype":
        w.add(FUNC, "f", w.int)
    return w.done()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("unknown kind", "unknown kind"),
        ("loop", "refers to itself"),
        ("type out of range", "refers to type 9999"),
        ("name out of range", "refers to string"),
        ("function of no prototype", "not a prototype"),
    ],
)
def test_what_is_broken_is_said(kind, said):
    with pytest.raises(FormatError, match=said):
        Btf.parse(broken(kind)).function("f")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begins with nothing"),
        (b"\x7fELF", "begins with 7f454c46"),
        (b"\x9f\xeb\x01", "too short"),
        (Writer().done(version=2), "version 2"),
        (writer().done()[:-1], "truncated"),
    ],
)
def test_what_is_no_btf_is_said(data, said):
    with pytest.raises(FormatError, match=said):
        Btf.parse(data)


def whole():
    w = writer()
    w.function("send", [w.add(PTR, "", w.sock), w.int], w.int)
    w.add(DATASEC, ".rodata", 4, vlen=1, rest=[w.add(VAR, "one", w.int, rest=[1]), 0, 4])
    return w.done()


WHOLE = whole()


@given(st.data())
def test_changed_bytes_parse_or_are_refused(data):
    """Any number of changed bytes, or a cut, gives a value or FormatError; nothing else, and never a hang."""
    changed = bytearray(WHOLE)
    places = st.integers(0, len(changed) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        changed[place] = byte
    changed = bytes(changed)[: data.draw(st.integers(0, len(changed)) | st.just(len(changed)))]
    with contextlib.suppress(FormatError):
        btf = Btf.parse(changed)
        btf.function("send")
        btf.section(".rodata")


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data):
    with contextlib.suppress(FormatError):
        Btf.parse(data)


@given(st.lists(st.tuples(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.integers(0, 12)), max_size=20))
def test_all_functions_come_back(functions):
    w = writer()
    for name, count in functions:
        w.function(name, [w.int] * count)
    btf = Btf.parse(w.done())
    first = {}
    for name, count in functions:
        first.setdefault(name, count)
    found = btf.functions({name for name, _ in functions} | {"absent!"})
    assert {name: len(s.parameters) for name, s in found.items()} == first
