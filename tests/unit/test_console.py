"""The console's words: phases, the line that matters, hostile input. Recorded consoles: fixtures/consoles/README.md."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.boot.console import LINE_LIMIT, READY, Console

RECORDED = Path(__file__).parents[2] / "fixtures" / "consoles"


def told(data):
    console = Console()
    console.feed(data)
    console.end()
    return console


def recorded(name):
    return told((RECORDED / f"{name}.log").read_bytes())


def stamped(*lines):
    return b"".join(b"[   12.345678] %s\n" % line.encode() for line in lines)


def answers(console):
    kinds = ("panic", "oops", "bug", "stall", "oom")
    found = tuple(console.finding(kind) for kind in kinds)
    return (console.phase, console.fatal, console.ready, console.lines, console.words, found)


@pytest.mark.parametrize("series", ["5.10", "6.1", "6.12", "6.18", "7.3"])
def test_a_good_boot(series):
    console = recorded(f"boot-{series}")
    assert console.phase == "ready"
    assert console.fatal is None
    assert console.words.startswith("kmt: the agent ended")


@pytest.mark.parametrize("series", ["5.10", "7.3"])
def test_a_panic(series):
    console = recorded(f"panic-sysrq-{series}")
    assert console.phase == "panic"
    assert console.panicked
    assert str(console.fatal) == "Kernel panic - not syncing: sysrq triggered crash"


@pytest.mark.parametrize("series", ["5.10", "7.3"])
def test_out_of_memory_is_no_death(series):
    console = recorded(f"oom-{series}")
    assert console.phase == "out of memory"
    assert console.fatal is None
    assert "(tail)" in console.finding("oom").line


def test_a_lock_up_is_no_death():
    console = recorded("stall-6.1")
    assert console.phase == "stall"
    assert console.fatal is None


def test_a_fault_wins_over_the_panic_that_follows_it():
    console = recorded("oops-6.18")
    assert console.panicked
    assert console.fatal.kind == "oops"
    assert console.fatal.where


def test_phases_in_their_order():
    console = Console()
    assert console.phase == "starting"
    console.feed(b"kmt: kernel 6.1.0 is up\n")
    assert console.phase == "booting"
    console.feed(b"kmt: ready\n")
    assert console.phase == "ready"
    console.feed(stamped("rcu: INFO: rcu_preempt self-detected stall on CPU"))
    assert console.phase == "stall"
    console.feed(stamped("kernel BUG at mm/slub.c:305!"))
    assert console.phase == "bug"
    console.feed(stamped("Oops: invalid opcode: 0000 [#1] SMP NOPTI", "RIP: 0010:kfree+0x2a6/0x370"))
    assert console.phase == "oops"
    assert console.fatal.where == "kfree+0x2a6/0x370"
    console.feed(stamped("Kernel panic - not syncing: Fatal exception"))
    assert console.phase == "panic"
    assert "invalid opcode" in str(console.fatal)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("BUG: kernel NULL pointer dereference, address: 0000000000000000", "oops"),
        ("BUG: unable to handle page fault for address: ffff888000000000", "oops"),
        ("general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP", "oops"),
        ("Oops: int3: 0000 [#1] PREEMPT SMP NOPTI", "oops"),
        ("double fault: 0000 [#1] SMP NOPTI", "oops"),
        ("BUG: KASAN: slab-out-of-bounds in foo+0x1/0x2", "oops"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [swapper/0:1]", "stall"),
        ("INFO: task python3:123 blocked for more than 120 seconds.", "stall"),
        ("rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", "stall"),
        ("Out of memory: Killed process 7 (python3) total-vm:1kB", "oom"),
        ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", "panic"),
    ],
)
def test_what_counts(line, kind):
    assert told(stamped(line)).finding(kind).line == line
    assert told(b"[    0.000000][    T1] " + line.encode() + b"\r\n").finding(kind).line == line


@pytest.mark.parametrize(
    "line",
    [
        "traps: python3[12] general protection fault ip:7f00 sp:7ffd error:0 in libc.so.6[7f00+1]",
        "python3[12]: segfault at 0 ip 00007f00 sp 00007ffd error 4 in x[1000+1]",
        "Memory cgroup out of memory: Killed process 7 (python3) total-vm:1kB",
        "WARNING: CPU: 0 PID: 1 at kernel/bpf/core.c:1 foo+0x1/0x2",
    ],
)
def test_what_does_not_count(line):
    assert told(stamped(line)).phase == "booting"


@pytest.mark.parametrize("line", ["Kernel panic - not syncing: fooled you", "Oops: 0002 [#1] SMP"])
def test_a_program_that_prints_the_words_is_not_believed(line):
    assert told(line.encode() + b"\n").fatal is None


def test_the_kernel_is_heard_in_the_middle_of_a_programs_line():
    console = told(b"progress: 12%[    5.000001] Kernel panic - not syncing: real\r\n")
    assert str(console.fatal) == "Kernel panic - not syncing: real"


def test_colours_and_other_controls_do_not_hide_a_line():
    console = told(b"\x1b[2J\x1b[1;31m[    5.000001]\x1b[0m Kernel \x07panic - not syncing: x\x1b[0m\r\n")
    assert str(console.fatal) == "Kernel panic - not syncing: x"


@given(st.binary(max_size=2000))
def test_garbage_is_harmless(data):
    console = told(data)
    assert console.phase in ("starting", "booting", "ready")


PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([READY.encode(), b"\n", b"\r\n", b"kmt: initramfs: cannot load x", b"x" * (LINE_LIMIT + 10)]),
    st.sampled_from(["Kernel panic - not syncing: y", "Oops: 0002 [#1] SMP", "RIP: 0010:f+0x1/0x2"]).map(
        lambda line: stamped(line)
    ),
)


@given(st.lists(PIECES, max_size=20).map(b"".join), st.data())
def test_slices_do_not_matter(whole, data):
    console = Console()
    rest = whole
    while rest:
        size = data.draw(st.integers(1, max(1, len(rest))))
        console.feed(rest[:size])
        rest = rest[size:]
    console.end()
    assert answers(console) == answers(told(whole))


def test_a_flood_without_line_breaks_takes_no_memory():
    console = Console()
    for _ in range(100):
        console.feed(b"x" * 100_000)
    assert len(console._partial) <= LINE_LIMIT
    console.feed(b"\n" + stamped("Kernel panic - not syncing: after the flood"))
    assert console.panicked


def test_the_first_of_its_kind_stays():
    console = told(stamped(*(f"Oops: {n:04x} [#{n}] SMP" for n in range(1, 9))))
    assert console.fatal.line == "Oops: 0001 [#1] SMP"
