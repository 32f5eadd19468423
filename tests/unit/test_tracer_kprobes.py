"""Which places the kprobe tracer listens at, and what tracefs says of its events."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import kprobes as tracefs
from harness.errors import BpfError, NotSupportedError
from harness.tracer import kprobes, probes
from harness.tracer.settings import TracerSettings
from harness.tracer.tracer import Tracer, Way

ON = st.booleans()
SETTINGS = st.builds(TracerSettings, ON, ON, ON, ON)
PAGES = {"tcp_sendpage", "udp_sendpage"}


@given(SETTINGS, st.sets(st.sampled_from(sorted(PAGES | kprobes.TRACEPOINTS))))
def test_what_is_asked_for_and_there(settings, there):
    symbols = (kprobes.functions() - PAGES) | there
    chosen = kprobes.choose(symbols, settings)
    assert set(chosen) <= set(kprobes.PLACES)
    assert set(chosen) <= set(kprobes.loadable(symbols)), "what may be switched on is loaded"
    assert len(chosen) == len(set(chosen))
    assert bool(chosen) == bool(settings.families)
    assert chosen.count("kprobe__skb_consume_udp") == settings.udp
    for program in chosen:
        place = kprobes.PLACES[program]
        assert not place.function or place.function in symbols
        if place.at_end and f"kprobe__{place.function}" in kprobes.PLACES:
            begin = chosen.index(f"kprobe__{place.function}")
            assert begin < chosen.index(program), "the begin is listened to before the end"


@pytest.mark.parametrize(
    ("symbol", "function", "instead"),
    [
        ("__traceiter_sock_send_length", "tcp_sendmsg", "raw_tp__sock_send_length"),
        ("__traceiter_sock_recv_length", "tcp_recvmsg", "raw_tp__sock_recv_length"),
    ],
)
def test_a_call_is_heard_of_once(symbol, function, instead):
    probes_of_it = {f"kprobe__{function}", f"kretprobe__{function}"}
    without, with_it = (
        set(kprobes.choose(kprobes.functions() | added, TracerSettings())) for added in (set(), {symbol})
    )
    assert probes_of_it <= without
    assert instead not in without
    assert without - with_it == probes_of_it
    assert with_it - without == {instead}


@given(st.sampled_from(sorted(kprobes.functions() - PAGES)))
def test_a_function_that_is_needed_and_missing_is_named(missing):
    symbols = kprobes.functions() - {missing}
    with pytest.raises(NotSupportedError, match=f"no function {missing} to set"):
        kprobes.choose(symbols, TracerSettings())
    assert not any(kprobes.PLACES[program].function == missing for program in kprobes.loadable(symbols))


def test_both_tracers_listen_to_the_same_functions():
    """A return probe stands where fexit does; retransmissions come by a tracepoint."""
    assert probes.functions() - kprobes.functions() == {"tcp_retransmit_skb"}
    assert kprobes.functions() <= probes.functions()


PROFILE = """\
  p_tcp_close_3                                           12               0
  r_tcp_recvmsg_4                                       1034              17
  something_else                                           1               2
"""


def test_what_an_event_missed():
    assert tracefs.missed(PROFILE, ["r_tcp_recvmsg_4"]) == 17
    assert tracefs.missed(PROFILE, ["p_tcp_close_3", "p_never_made_0"]) == 0
    assert tracefs.missed(PROFILE, ["r_tcp_recvmsg_4", "something_else"]) == 19


def test_what_a_tracer_missed_is_not_asked_while_its_programs_are_switched():
    """The number is made of those that were taken off and those that are on."""
    running = Tracer.__new__(Tracer)
    running._lock = lock = threading.RLock()
    unused = lambda *_: None  # noqa: E731
    running._way = Way("kprobe", unused, unused, unused, lambda: int(lock._is_owned()), unused)
    assert running.missed() == 1, "asked under the lock"


def test_all_events_are_read_at_once(tmp_path):
    """The kernel makes the table anew for each reader: what a row of it is, changes in between."""
    made = [tracefs.KprobeEvent(tmp_path, "g", name) for name in ("r_tcp_recvmsg_4", "something_else")]
    assert tracefs.all_missed([], tmp_path) == 0
    with pytest.raises(BpfError, match=r"reading .*kprobe_profile: ENOENT"):
        tracefs.all_missed(made, tmp_path)
    (tmp_path / "kprobe_profile").write_text(PROFILE)
    assert tracefs.all_missed(made, tmp_path) == 19
    assert made[0].missed() == 17


@given(st.text(max_size=200), st.text(max_size=10))
def test_any_profile_is_a_number(text, name):
    assert tracefs.missed(text, [name]) >= 0


def test_without_tracefs(tmp_path):
    with pytest.raises(NotSupportedError, match="has no kprobe_events"):
        tracefs.KprobeEvent.make("tcp_close", at_end=False, max_active=1, tracing=tmp_path)
    tracefs.sweep(tmp_path)


def test_an_event_in_the_words_of_tracefs(tmp_path):
    table = tmp_path / "kprobe_events"
    table.touch()
    begin = tracefs.KprobeEvent.make("tcp_close", at_end=False, max_active=9, tracing=tmp_path)
    end = tracefs.KprobeEvent.make("tcp_close", at_end=True, max_active=9, tracing=tmp_path)
    assert begin.name != end.name
    assert table.read_text().splitlines() == [
        f"p:{begin.group}/{begin.name} tcp_close",
        f"r9:{end.group}/{end.name} tcp_close",
    ]
    end.remove()
    assert len(table.read_text().splitlines()) == 2, "there is no such event: nothing to remove"
    (tmp_path / "events" / end.group / end.name).mkdir(parents=True)
    end.remove()
    assert table.read_text().splitlines()[2] == f"-:{end.group}/{end.name}"


def test_a_table_that_may_not_be_written_is_an_error(tmp_path):
    (tmp_path / "kprobe_events").mkdir()
    with pytest.raises(BpfError, match="probing tcp_close: EISDIR"):
        tracefs.KprobeEvent.make("tcp_close", at_end=False, max_active=1, tracing=tmp_path)


def test_the_events_of_the_dead_are_removed(tmp_path):
    dead, living = f"{2**22 + 5}_0123abcd", "1_0123abcd"
    lines = [f"p:harness_{dead}/p_a_0 a", f"r9:harness_{living}/r_b_1 b", "p:others/c c"]
    (tmp_path / "kprobe_events").write_text("\n".join(lines) + "\n")
    (tmp_path / f"events/harness_{dead}/p_a_0").mkdir(parents=True)
    (tmp_path / f"events/harness_{living}/r_b_1").mkdir(parents=True)
    tracefs.sweep(tmp_path)
    assert (tmp_path / "kprobe_events").read_text().splitlines()[3:] == [f"-:harness_{dead}/p_a_0"]
