"""Bisection over versions: code followed, relocations resolved, and boundaries drawn from verdicts and gates."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import FormatError
from kmt import __main__ as module
from kmt.commands import boundary as command
from kmt.errors import CannotTellError, ConfigError
from kmt.simulator import gates, objects, reach, relocate, sections
from kmt.simulator.boundary import Boundary, Row, Trial, bounded, look, sides, to_json
from kmt.simulator.derive import KernelFacts
from kmt.simulator.facts import Fact, Sort
from kmt.simulator.judge import Answer, Finding, Image, Names
from kmt.simulator.objects import Code, Program, Relocation
from kmt.simulator.profile import recorded
from kmt.simulator.types import Types
from kmt.simulator.walk import walk

TOLD = KernelFacts("6.1", recorded(), gates.load())


def i(code, target=0, source=0, offset=0, immediate=0):
    return struct.pack("<BBhi", code, target | source << 4, offset, immediate)


EXIT = i(0x95)


def call(helper):
    return i(0x85, immediate=helper)


# Code.


def test_code_behind_a_question_with_the_answer_no_is_not_reached():
    """r1 = exists?; if r1 == 0 goto over the call of helper 5."""
    code = Code(i(0xB7, 1, immediate=1) + i(0x15, 1, offset=1) + call(5) + EXIT)
    assert walk(code, {}).helpers == {5}
    assert walk(code, {0: 0}).helpers == set(), "a relocation has put 0 there"
    assert walk(code, {0: None}).helpers == {5}, "a value that is not known goes both ways"


@pytest.mark.parametrize(
    ("opcode", "left", "right", "taken"),
    [
        (0x15, 3, 3, True), (0x55, 3, 3, False), (0x25, 4, 3, True), (0x35, 3, 3, True), (0xA5, 2, 3, True),
        (0xB5, 4, 3, False), (0x45, 6, 2, True), (0x65, -1, 1, False), (0x75, 1, -1, True), (0xC5, -1, 1, True),
        (0xD5, 2, 1, False), (0x16, 1 << 20, 1 << 20, True), (0x66, -1, 1, False),
    ],
)  # fmt: skip
def test_jumps_are_decided_as_the_processor_would(opcode, left, right, taken):
    code = Code(i(0xB7, 1, immediate=left) + i(opcode, 1, offset=1, immediate=right) + call(1) + EXIT)
    assert (walk(code, {}).helpers == set()) is taken


@pytest.mark.parametrize(
    ("steps", "value"),
    [
        ([(0x07, 2)], 7), ([(0x17, 6)], -1), ([(0x67, 32), (0x77, 32)], 5), ([(0x57, 4)], 4), ([(0x47, 2)], 7),
        ([(0xA7, 1)], 4), ([(0x27, 3)], 15), ([(0xB4, -1)], 0xFFFFFFFF), ([(0x04, 1)], 6),
    ],
)  # fmt: skip
def test_arithmetic_is_followed(steps, value):
    body = i(0xB7, 1, immediate=5) + b"".join(i(op, 1, immediate=n) for op, n in steps)
    wide = i(0x18, 2, immediate=value & 0x7FFFFFFF | -(value >> 31 & 1) << 31) + i(0, immediate=value >> 32)
    code = Code(body + wide + i(0x1D, 1, 2, offset=1) + call(1) + EXIT)
    assert walk(code, {}).helpers == set()


def test_what_two_ways_disagree_in_is_not_known():
    """r1 = 0, or 1 if what r2 points to is 0; then a call where r1 is 1."""
    code = Code(
        i(0xB7, 1, immediate=0) + i(0x15, 2, offset=1) + i(0xB7, 1, immediate=1) + i(0x15, 1, offset=1) + call(7) + EXIT
    )
    assert walk(code, {}).helpers == {7}


def test_what_is_read_of_the_context_is_seen_through_copies():
    code = Code(i(0xBF, 6, 1) + i(0x79, 2, 6, offset=16) + i(0x07, 6, immediate=8) + i(0x79, 3, 6, offset=32) + EXIT)
    assert walk(code, {}).context == {16, 40}


def test_loops_end_and_code_may_end_anywhere():
    loop = Code(i(0x07, 1, immediate=1) + i(0x05, offset=-2) + EXIT)
    assert walk(loop, {}).instructions == {0, 1}
    assert walk(Code(i(0x05, offset=100)), {}).instructions == {0}


def test_functions_and_kernel_functions_are_told_apart():
    code = Code(i(0x85, 0, 1, immediate=-1) + i(0x85, 0, 2, immediate=99) + call(3) + EXIT, references={0: 12})
    seen = walk(code, {})
    assert (seen.functions, seen.kfuncs, seen.helpers) == ({12}, True, {3})


CALL_WHERE_IT_IS_9 = i(0x15, 3, offset=1, immediate=9) + call(2) + EXIT
"""r3 == 9? Over the call of helper 2."""


@pytest.mark.parametrize(
    ("opcode", "operation", "source", "known"),
    [
        (0xDB, 0x00, 3, True),  # add, and nobody asks what was there
        (0xDB, 0x01, 3, False),
        (0xC3, 0xE1, 3, False),  # exchange
        (0xDB, 0xF1, 3, True),  # compare and exchange: that gives it in r0
        (0xC3, 0x110, 3, True),  # a store with release
    ],
)
def test_atomic_operations_that_give_what_was_there(opcode, operation, source, known):
    code = Code(i(0xB7, 3, immediate=9) + i(opcode, 10, source, -8, operation) + CALL_WHERE_IT_IS_9)
    assert (walk(code, {}).helpers == set()) is known


@pytest.mark.parametrize("opcode", [0xC3, 0xDB])
def test_what_is_compared_and_exchanged_comes_in_r0(opcode):
    """r0 = 9; cmpxchg; r3 = r0."""
    code = Code(i(0xB7, 0, immediate=9) + i(opcode, 10, 4, -8, 0xF1) + i(0xBF, 3, 0) + CALL_WHERE_IT_IS_9)
    assert walk(code, {}).helpers == {2}


def test_a_load_with_acquire_is_a_load():
    code = Code(i(0xB7, 3, immediate=9) + i(0xDB, 3, 10, -8, 0x100) + CALL_WHERE_IT_IS_9)
    assert walk(code, {}).helpers == {2}


@pytest.mark.parametrize("opcode", [0x20, 0x28, 0x30, 0x40, 0x48, 0x50])
@pytest.mark.parametrize("register", range(10))
def test_a_load_of_packet_data_overwrites_what_a_call_does(opcode, register):
    code = Code(i(0xB7, register, immediate=9) + i(opcode, 0, 7) + i(0xBF, 3, register) + CALL_WHERE_IT_IS_9)
    assert (walk(code, {}).helpers == set()) is (register > 5)


def test_a_call_in_another_section_than_text_is_not_followed_anywhere():
    whole = objects.EbpfObject((), {}, (), {1: Code(EXIT)}, None)
    with pytest.raises(CannotTellError, match="in the section of a program"):
        reach.follow(Code(i(0x85, 0, 1, immediate=0) + EXIT), whole, None)


@given(st.binary(min_size=8, max_size=160))
def test_any_code_is_followed_to_an_end(data):
    seen = walk(Code(data[: len(data) // 8 * 8]), {})
    assert 0 in seen.instructions


# Sections.


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kprobe/tcp_close", ("kprobe", "", "tcp_close", False, False)),
        ("kretprobe/tcp_close", ("kprobe", "", "tcp_close", False, True)),
        ("fexit/tcp_close", ("tracing", "trace_fexit", "tcp_close", False, True)),
        ("fentry.s/do_unlinkat", ("tracing", "trace_fentry", "do_unlinkat", True, False)),
        ("?lsm.s/file_open", ("lsm", "lsm_mac", "file_open", True, False)),
        ("tp/sched/sched_switch", ("tracepoint", "", "sched/sched_switch", False, False)),
        ("kprobe.multi/tcp_*", ("kprobe", "trace_kprobe_multi", "tcp_*", False, False)),
        ("xdp.frags", ("xdp", "", "", False, False)),
        ("cgroup/connect4", ("cgroup_sock_addr", "cgroup_inet4_connect", "", False, False)),
        ("uprobe", ("kprobe", "", "", False, False)),
    ],
)
def test_sections_say_what_libbpf_takes_them_for(name, said):
    place = sections.place(name)
    assert (place.sort.program_type, place.sort.attach_type, place.name, place.sleepable, place.at_end) == said


BY_THEMSELVES = """
    kprobe/f fentry/f fmod_ret.s/f tp/a/b raw_tp/x tp_btf/x lsm/file_open iter/task ksyscall/x
    kprobe.multi/f* kretprobe.multi/f* kprobe.session/f*
"""
NOT = """
    cgroup_skb/ingress tc/ingress tcx/ingress netkit/primary sk_skb/stream_parser xdp/devmap xdp cgroup/connect4
    uprobe//bin/true:main usdt//bin/true:a:b uprobe.multi/x:y kprobe kprobe.multi socket/x action/x perf_event/x
    lsm_cgroup/socket_bind iter/bpf_map_elem iter/cgroup netfilter/x
"""


@pytest.mark.parametrize("name", BY_THEMSELVES.split())
def test_what_libbpf_attaches_by_the_section(name):
    assert sections.place(name).attachable


@pytest.mark.parametrize("name", NOT.split())
def test_what_wants_more_than_its_section(name):
    """An interface, a control group, a map, a file of the guest's: libbpf answers EOPNOTSUPP, or looks for the file."""
    assert not sections.place(name).attachable


@given(st.text(max_size=20))
def test_unknown_sections_are_none(name):
    place = sections.place(name)
    assert place is None or name.lstrip("?").startswith(tuple(sections.KNOWN))


# Relocations.

INT, STRUCT, UNION, ARRAY, ENUM, FWD = 1, 4, 5, 3, 6, 7


def btf(*kinds):
    """BTF of (kind, name, size, [(member, type, offset in bits) or (enumerator, value)])."""
    strings, words = b"\0", []

    def text(word):
        nonlocal strings
        if not word:
            return 0
        strings += word.encode() + b"\0"
        return len(strings) - len(word) - 1

    for kind, name, size, inner in kinds:
        words += [text(name), kind << 24 | (len(inner) if kind in (STRUCT, UNION, ENUM) else 0), size]
        if kind == INT:
            words.append(size * 8)
        elif kind == ARRAY:
            words[-1] = 0
            words += [*inner]
        else:
            words += [n for each in inner for n in ([text(each[0]), *each[1:]])]
    data = struct.pack(f"<{len(words)}I", *words)
    return Types.parse(
        struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(data), len(data), len(strings)) + data + strings
    )


LOCAL = btf(
    (INT, "int", 4, []),
    (STRUCT, "inner", 8, [("a", 1, 0), ("b", 1, 32)]),
    (STRUCT, "sock___mine", 16, [("x", 1, 0), ("in", 2, 64)]),
    (ENUM, "mode", 4, [("OFF", 0), ("ON___new", 1)]),
    (ARRAY, "", 0, [1, 1, 4]),
    (STRUCT, "list", 16, [("items", 5, 0)]),
)
KERNEL = btf(
    (INT, "int", 4, []),
    (STRUCT, "inner", 12, [("b", 1, 0), ("a", 1, 64)]),
    (UNION, "", 12, [("in", 2, 0)]),
    (STRUCT, "sock", 32, [("", 3, 128)]),
    (ENUM, "mode", 4, [("OFF", 5), ("ON", 9)]),
    (ARRAY, "", 0, [1, 1, 3]),
    (STRUCT, "list", 16, [("head", 1, 0), ("items", 6, 32)]),
)


def answer(type_id, access, kind, kernel=KERNEL):
    return relocate.resolve(LOCAL, Relocation(type_id, access, kind), kernel)


@pytest.mark.parametrize(
    ("type_id", "access", "kind", "found", "value"),
    [
        (3, "0:1:1", 0, True, 16),  # sock.in.b, behind an anonymous union
        (3, "0:1:0", 0, True, 24),
        (3, "0:1:0", 1, True, 4),
        (3, "0:1:0", 2, True, 1),
        (3, "0:0", 0, False, None),  # sock.x
        (3, "0:0", 2, True, 0),
        (3, "2", 0, True, 64),
        (3, "0", 8, True, 1),
        (3, "0", 9, True, 32),
        (3, "0", 6, True, 3),
        (3, "0", 7, True, 4),
        (4, "1", 10, True, 1),
        (4, "1", 11, True, 9),
        (6, "0:0:2", 0, True, 12),
        (6, "0:0:3", 0, False, None),  # the kernel's array has three
        (3, "0", 12, True, None),  # whether they match member by member is not looked at
    ],
)
def test_relocations_are_resolved_by_names(type_id, access, kind, found, value):
    assert answer(type_id, access, kind) == relocate.Answer(found, value)


def test_what_a_kernel_has_not_is_missing_and_named():
    without = btf((INT, "int", 4, []))
    for kind in (7, 8, 9, 12):
        assert answer(3, "0", kind, without) == relocate.Answer(True, 0), "libbpf puts 0, and refuses nothing"
    assert answer(4, "1", 11, without) == relocate.Answer(False, None)
    assert answer(3, "0:1:1", 0, without) == relocate.Answer(False, None)
    assert relocate.wanted(LOCAL, Relocation(3, "0:1:1", 0)) == "struct sock.in.b"
    assert relocate.wanted(LOCAL, Relocation(4, "1", 11)) == "enum mode ON___new"


def test_types_of_one_name_that_disagree_are_ambiguous():
    two = btf(
        (INT, "int", 4, []),
        (STRUCT, "sock", 8, [("x", 1, 0)]),
        (STRUCT, "sock", 8, [("x", 1, 32)]),
    )
    with pytest.raises(relocate.AmbiguousError, match=r"struct sock\.x is 0 or 4"):
        answer(3, "0:0", 0, two)
    assert answer(3, "0:0", 2, two).value == 1


@pytest.mark.parametrize("access", ["", "x", "0:-1:0", "-1", "0:", "9" * 5000, "0:\u0664\u0664\u0664\u0664\u0664"])
@pytest.mark.parametrize("kernel", [KERNEL, btf((INT, "int", 4, []))])
def test_an_access_that_is_none_is_told(access, kernel):
    whole = objects.EbpfObject((), {}, (), {}, LOCAL)
    with pytest.raises(CannotTellError, match="its types cannot be read"):
        reach.follow(Code(i(0xB7, 1) + EXIT, {0: Relocation(3, access, 0)}), whole, kernel)


@pytest.mark.parametrize("ask", [Types.array, Types.members, Types.values, Types.variables, Types.parameters])
def test_a_type_of_another_kind_has_no_such_words(ask):
    """An integer that is the last type of all, and says that it has members."""
    words = struct.pack("<4I", 0, INT << 24 | 9, 4, 32)
    types = Types.parse(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 16, 16, 1) + words + b"\0")
    with pytest.raises(FormatError, match="BTF type 1 is INT, not"):
        ask(types, 1)
    with pytest.raises(FormatError, match="BTF type 0 is VOID, not"):
        ask(types, 0)


def test_an_array_of_itself_has_no_size():
    with pytest.raises(FormatError, match="has no size"):
        btf((ARRAY, "", 0, [1, 1, 4])).size(1)
    assert btf((INT, "int", 4, []), (ARRAY, "", 0, [1, 1, 4]), (ARRAY, "", 0, [2, 1, 3])).size(3) == 48


def test_names_that_are_called_deprecated_stand_behind_the_ones_that_old_kernels_have():
    said = [("CGROUP_STORAGE_DEPRECATED", 19), ("HASH", 1), ("CGROUP_STORAGE", 19), ("X_DEPRECATED", 2)]
    types = btf((ENUM, "bpf_map_type", 4, [(f"BPF_MAP_TYPE_{name}", number) for name, number in said]))
    names = Names.of(types)
    assert [names.map(number) for number in (19, 1, 2)] == ["cgroup_storage", "hash", "x_deprecated"]


# Boundaries.

YES = Finding(Answer.YES, "fine")
PLAIN = Finding(Answer.NO, "it has no struct sock.x")
RINGBUF = Fact(Sort.MAP_TYPE, "ringbuf")
COOKIE = Fact(Sort.CALL, "kprobe bpf_get_attach_cookie")


def row(release, *findings, trial=None):
    return Row(release, release, list(findings), trial)


def test_between_two_kernels_a_gate_draws_the_line():
    rows = [row("5.10", Finding(Answer.NO, "no cookie", COOKIE)), row("6.1", YES)]
    found = bounded(rows, [COOKIE, RINGBUF], TOLD)
    assert str(found) == "5.15"
    assert found.why == (
        "Linux 5.14: no helper call kprobe bpf_get_attach_cookie "
        "(helper bpf_get_attach_cookie: since 5.15, commit 7adfc6c9b315)"
    )


def test_what_no_gate_knows_leaves_a_range_and_says_why():
    found = bounded([row("5.10", PLAIN), row("6.1", YES), row("6.12", PLAIN)], [RINGBUF], TOLD)
    assert (str(found), found.ends) == ("5.11 to 6.1", "6.12")
    assert found.doubts == ("it has no struct sock.x",)


def test_a_signature_that_changed_is_a_line_too():
    before = Finding(Answer.NO, "it reads value 3", Fact(Sort.SIGNATURE, "inet_csk_accept"))
    found = bounded([row("6.1", before), row("6.12", YES)], [], TOLD)
    assert str(found) == "6.10"
    assert "inet_csk_accept is struct sock * (struct sock *, int, int *, bool)" in found.why


def test_below_the_oldest_kernel_gates_only_exclude():
    found = bounded([row("5.10", YES)], [RINGBUF], TOLD)
    assert str(found) == "5.8 to 5.10"
    assert "Linux 5.7: no map type ringbuf (since 5.8, commit 457f44363a88)" in found.why


def test_where_none_takes_it_there_is_no_line():
    found = bounded([row("5.10", PLAIN), row("6.1", PLAIN)], [], TOLD)
    assert (str(found), found.why) == ("none", PLAIN.words)


def test_kernels_that_cannot_be_told_are_no_line():
    doubtful = Finding(Answer.UNKNOWN, "the symbol table may")
    found = bounded([row("5.10", doubtful), row("6.1", PLAIN)], [], TOLD)
    assert (str(found), found.doubts) == ("cannot tell", ("5.10: the symbol table may",))
    found = bounded([row("5.10", PLAIN), row("6.1", doubtful), row("6.12", YES)], [], TOLD)
    assert str(found) == "5.11 to 6.12", "it may begin anywhere above the last that surely does not take it"
    assert "6.1: the symbol table may" in found.doubts
    assert str(bounded([row("5.10", doubtful), row("6.1", YES)], [RINGBUF], TOLD)) == "5.8 to 6.1"


def test_a_kernel_that_refuses_what_its_files_refuse_widens_nothing():
    below = row("5.10", Finding(Answer.NO, "no cookie", COOKIE), trial=Trial(False, None, "rejected: unknown func"))
    assert str(bounded([below, row("6.1", YES, trial=Trial(True, True))], [COOKIE], TOLD)) == "5.15"


def test_a_real_kernel_wins_over_what_its_files_say():
    refused = row("6.1", YES, trial=Trial(False, None, "rejected: R1 is bad", "0: (95) exit"))
    assert refused.answer is Answer.NO
    assert refused.reasons == ["rejected: R1 is bad"]
    assert row("6.1", PLAIN, trial=Trial(True, True)).answer is Answer.YES
    assert row("6.1", YES, trial=Trial(True, False, "ENOENT")).answer is Answer.NO
    found = bounded([row("5.10", YES, trial=Trial(False, None, "rejected")), row("6.1", YES)], [], TOLD)
    assert (str(found), found.why) == ("5.11 to 6.1", "rejected")


def test_a_load_does_not_show_what_an_attachment_would():
    place = Finding(Answer.NO, "it has no fprobe", Fact(Sort.MARK, "register_fprobe_ips"))
    seen = row("6.1", place, trial=Trial(True, None))
    assert (seen.answer, seen.asked, seen.reasons) == (Answer.NO, False, ["it has no fprobe"])
    assert row("6.1", PLAIN, trial=Trial(True, None)).answer is Answer.YES


def test_what_cannot_be_told_of_one_program_is_no_others():
    place = sections.place("kprobe")
    fine = Program("fine", "kprobe", place, Code(EXIT))
    astray = Program("astray", "kprobe", place, Code(i(0x85, 0, 1, immediate=5) + EXIT))
    whole = objects.EbpfObject((astray, fine), {}, (), {}, None)
    types = btf((ENUM, "bpf_prog_type", 4, [("BPF_PROG_TYPE_KPROBE", 2)]), (ENUM, "bpf_func_id", 4, []))
    images = [
        Image(name, name, types, dict(recorded()[name].config), KernelFacts(name, recorded(), gates.load()))
        for name in ("5.10", "6.1")
    ]
    first, second = look(whole, whole.programs, images, None)
    assert [str(row.answer) for row in (*first.rows, *second.rows)] == ["cannot tell"] * 2 + ["yes"] * 2
    assert (str(first.boundary), first.rows[0].reasons) == (
        "cannot tell", ["a call of a function that is in the section of a program"]
    )  # fmt: skip
    trials = {"5.10": Trial(False, None, "rejected"), "6.1": Trial(True, True)}
    first, _ = look(whole, whole.programs, images, lambda kernel, those: {p.name: trials[kernel] for p in those})
    assert str(first.boundary) == "5.11 to 6.1"
    assert "a call of a function that is in the section of a program" in first.boundary.doubts


def test_asked_are_the_kernels_on_both_sides():
    rows = [row("5.10", PLAIN), row("6.1", PLAIN), row("6.12", YES), row("6.18", YES), row("7.3", YES)]
    assert [r.kernel for r in sides(rows)] == ["6.1", "6.12"]
    assert [r.kernel for r in sides(rows[2:])] == ["6.12"]
    doubtful = row("6.18", Finding(Answer.UNKNOWN, "?"))
    assert doubtful in sides([*rows[:3], doubtful])


def test_json_has_it_all():
    rows = [row("5.10", PLAIN, trial=Trial(False, None, "no", "log")), row("6.1", YES)]
    document = json.loads(json.dumps(to_json("p", "kprobe/f", rows, bounded(rows, [], TOLD))))
    assert document["kernels"][0]["trial"] == {"loads": False, "attaches": None, "error": "no", "log": "log"}
    assert (document["oldest"], document["not_before"], document["kernels"][1]["answer"]) == ("6.1", "5.11", "yes")
    assert to_json("p", "s", rows[:1], Boundary(None, None, ""))["oldest"] is None


# Bad input.


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "no eBPF object"),
        (b"#!/bin/sh\n", "no eBPF object"),
        (b"\x7fELF" + bytes(60), "no eBPF object"),
    ],
)
def test_what_is_no_object_is_told(image, said):
    with pytest.raises(CannotTellError, match=said):
        objects.parse(image)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_an_error(data):
    with pytest.raises(CannotTellError):
        objects.parse(b"\x7fELF\x02\x01\x01" + data)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        command.boundary(tmp_path, tmp_path / "none.o")


def test_projects_without_inv_have_it_too(tmp_path):
    said = module.parser().parse_args(["boundary", str(tmp_path / "none.o"), "p", "--static"])
    with pytest.raises(ConfigError, match="No such file"):
        module.perform(said, tmp_path)
