"""Gates: every one is held against every recorded kernel, and what follows from them against what was recorded."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.errors import CannotTellError, ProfileError
from kmt.simulator import agreement, derive, gates
from kmt.simulator.derive import KernelFacts, Label
from kmt.simulator.facts import Fact, Sort, recorded
from kmt.simulator.profile import recorded as profiles_of

PROFILES = profiles_of()
GATES = gates.load()
SERIES = [f"{major}.{minor}" for major, minor in GATES.between((4, 14), (7, 4))]


def names_of(profile):
    helpers = sorted(profile.other_helpers.union(*profile.helpers.values()))
    yield Sort.CALL, [f"{kind} {helper}" for kind in profile.helpers for helper in helpers]
    yield Sort.HELPER, helpers
    yield from (
        (Sort.PROGRAM_TYPE, profile.program_types), (Sort.MAP_TYPE, profile.map_types), (Sort.OPTION, profile.config),
        (Sort.ATTACH_TYPE, profile.attach_types), (Sort.FUNCTION, profile.functions), (Sort.MARK, profile.marks),
        (Sort.SIGNATURE, profile.functions), (Sort.TRACEPOINT, profile.tracepoints),
    )  # fmt: skip


FACTS = sorted(
    {Fact(sort, name) for profile in PROFILES.values() for sort, names in names_of(profile) for name in names}
)


def replaced(gate, **changed):
    """The table with that gate changed, and no option to excuse it."""
    needs = {fact: options for fact, options in GATES.needs.items() if fact != gate.fact}
    gates = {**GATES.gates, gate.fact: dataclasses.replace(gate, **changed)}
    return dataclasses.replace(GATES, gates=gates, needs=needs)


def test_no_gate_is_contradicted_by_a_recorded_kernel():
    assert [str(mismatch) for mismatch in agreement.mismatches(PROFILES, GATES)] == []


def test_no_two_recorded_kernels_differ_without_a_gate_in_between():
    assert list(agreement.unexplained(PROFILES, GATES)) == []


NEVER_SEEN = {Fact(Sort.PROGRAM_TYPE, "lirc_mode2")}
"""Debian's cloud flavour has it nowhere compiled in."""


@pytest.mark.parametrize("gate", GATES.gates.values(), ids=lambda gate: str(gate.fact))
def test_a_gate_that_is_wrong_is_found(gate):
    """Turned into its opposite for all recorded kernels, whatever it said of them."""
    told = [recorded(profile, gate.fact) for profile in PROFILES.values()]
    assert any(value is not None for value in told) is (gate.fact not in NEVER_SEEN)
    late, early = gates.Change((9, 0), "0" * 12), gates.Change((3, 0), "0" * 12)
    never, always = replaced(gate, since=late, until=None), replaced(gate, since=early, until=None)
    found = [{m.fact for m in agreement.mismatches(PROFILES, wrong)} for wrong in (never, always)]
    assert (gate.fact in found[0]) is (True in told)
    assert (gate.fact in found[1]) is (False in told)


def test_a_call_that_no_kernel_allows_is_found():
    wrong = dataclasses.replace(GATES, calls=GATES.calls | {("kprobe", "bpf_redirect")})
    (first, *_), facts = (found := list(agreement.mismatches(PROFILES, wrong))), {m.fact for m in found}
    assert facts == {Fact(Sort.CALL, "kprobe bpf_redirect")}
    assert "was recorded with helper call kprobe bpf_redirect: False; the gate says otherwise" in str(first)


def test_an_option_that_is_off_excuses_a_gate_and_one_that_is_on_does_not():
    fact = Fact(Sort.MARK, "register_fprobe_ips")
    without = dataclasses.replace(GATES, needs={k: v for k, v in GATES.needs.items() if k != fact})
    assert [m.fact for m in agreement.mismatches(PROFILES, without)] == [fact], "6.1 is configured without FPROBE"


def test_a_backport_excuses_the_series_that_has_it_and_no_other():
    gate = GATES.gates[Fact(Sort.MAP_TYPE, "ringbuf")]
    late = replaced(gate, since=gates.Change((6, 2), "0" * 12))
    excused = dataclasses.replace(late, backports=frozenset({(gate.fact, (5, 10))}))
    assert [m.release[:3] for m in agreement.mismatches(PROFILES, late) if m.fact == gate.fact] == ["5.1", "6.1"]
    assert [m.release[:3] for m in agreement.mismatches(PROFILES, excused) if m.fact == gate.fact] == ["6.1"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"changed": {}}, "signature inet_csk_accept differs between 6.1 and 6.12"),
        ({"ungated": frozenset()}, "attach type trace_fsession differs between 6.18 and 7.3"),
        (
            {"changed": {"tcp_close": (gates.Change((6, 0), "0" * 12),)}},
            "signature tcp_close is the same in 5.10 and 6.1, and is said to have changed",
        ),
    ],
)
def test_what_no_gate_explains_is_found(changed, said):
    assert said in list(agreement.unexplained(PROFILES, dataclasses.replace(GATES, **changed)))


# What follows.

SIX = "int (struct sock *, struct msghdr *, size_t, int, int, int *)"
FIVE = "int (struct sock *, struct msghdr *, size_t, int, int *)"


@pytest.mark.parametrize(
    ("version", "fact", "value", "label"),
    [
        ("5.10", (Sort.MAP_TYPE, "ringbuf"), True, Label.RECORDED),
        ("7.3", (Sort.MAP_TYPE, "arena"), True, Label.GATED),
        ("5.15", (Sort.MAP_TYPE, "bloom_filter"), False, Label.GATED),
        ("5.15", (Sort.MAP_TYPE, "ringbuf"), True, Label.GATED),
        ("5.4", (Sort.MAP_TYPE, "ringbuf"), False, Label.GATED),
        ("5.4", (Sort.PROGRAM_TYPE, "tracing"), False, Label.GATED),
        ("5.5", (Sort.PROGRAM_TYPE, "tracing"), True, Label.GATED),
        ("5.15", (Sort.CALL, "kprobe bpf_get_attach_cookie"), True, Label.GATED),
        ("5.14", (Sort.CALL, "kprobe bpf_get_attach_cookie"), False, Label.GATED),
        ("5.4", (Sort.CALL, "kprobe bpf_probe_read"), True, Label.GATED),
        ("5.4", (Sort.CALL, "tracing bpf_probe_read"), False, Label.GATED),
        ("5.15", (Sort.CALL, "kprobe bpf_redirect"), False, Label.INTERPOLATED),
        ("5.15", (Sort.CALL, "kprobe bpf_ringbuf_output"), True, Label.INTERPOLATED),
        ("5.18", (Sort.SIGNATURE, "tcp_recvmsg"), SIX, Label.GATED),
        ("5.19", (Sort.SIGNATURE, "tcp_recvmsg"), FIVE, Label.GATED),
        ("5.10", (Sort.SIGNATURE, "tcp_recvmsg"), SIX, Label.RECORDED),
        ("6.6", (Sort.SIGNATURE, "tcp_close"), "void (struct sock *, long int)", Label.INTERPOLATED),
        ("6.4", (Sort.FUNCTION, "tcp_sendpage"), True, Label.GATED),
        ("6.5", (Sort.FUNCTION, "tcp_sendpage"), False, Label.GATED),
        ("5.15", (Sort.OPTION, "BPF_LSM"), "y", Label.INTERPOLATED),
        ("5.4", (Sort.OPTION, "BPF_LSM"), "y", Label.INTERPOLATED),
        ("6.6", (Sort.PROGRAM_TYPE, "lirc_mode2"), False, Label.GATED),
        ("6.6", (Sort.TRACEPOINT, "tcp:tcp_retransmit_skb"), True, Label.GATED),
        ("6.6", (Sort.TRACEPOINT, "sched:sched_switch"), True, Label.INTERPOLATED),
    ],
)  # fmt: skip
def test_what_is_told_and_whence(version, fact, value, label):
    told = KernelFacts(version, PROFILES, GATES).ask(Fact(*fact))
    assert (told.value, told.label) == (value, label)
    assert told.why


@pytest.mark.parametrize(
    ("version", "fact", "why"),
    [
        ("6.6", (Sort.MARK, "register_fprobe_ips"), "option FPROBE of Linux 6.6: it differs between 6.1 and 6.12"),
        ("7.1", (Sort.SIGNATURE, "tcp_recvmsg"), "it differs between 6.18 and 7.3, and no gate says where"),
        ("7.1", (Sort.ATTACH_TYPE, "trace_fsession"), "it differs between"),
        ("5.4", (Sort.SIGNATURE, "tcp_close"), "no gate says"),
        ("5.15", (Sort.MAP_TYPE, "of_the_future"), "no gate says"),
        ("7.9", (Sort.FUNCTION, "tcp_close"), "no gate says"),
        ("6.1", (Sort.FUNCTION, "never_asked"), "could not be told of 6.1.0-"),
    ],
)
def test_what_cannot_be_told_says_why(version, fact, why):
    facts = KernelFacts(version, PROFILES, GATES)
    with pytest.raises(CannotTellError, match=why):
        facts.ask(Fact(*fact))
    assert facts.told(Fact(*fact)) is None


def test_what_was_recorded_on_both_sides_wins_over_a_gate():
    """A distribution that carried something back into two series has it in those between."""
    gate = GATES.gates[Fact(Sort.MAP_TYPE, "ringbuf")]
    late = replaced(gate, since=gates.Change((6, 13), "0" * 12))
    told = KernelFacts("5.15", PROFILES, late).ask(gate.fact)
    assert (told.value, told.label, told.why) == (True, Label.INTERPOLATED, "carried back: as in 5.10 and 6.1")


@given(st.sampled_from(sorted(PROFILES)), st.sampled_from(FACTS))
def test_a_recorded_kernel_is_as_it_was_recorded(name, fact):
    value = recorded(PROFILES[name], fact)
    told = KernelFacts(name, PROFILES, GATES).told(fact)
    assert value is None or (told.value, told.label) == (value, Label.RECORDED)


@given(st.sampled_from(SERIES), st.sampled_from(FACTS))
def test_every_answer_is_labelled_and_none_is_recorded_of_a_kernel_that_was_not(version, fact):
    told = KernelFacts(version, PROFILES, GATES).told(fact)
    assert told is None or (told.label is Label.RECORDED) <= (version in PROFILES)


@given(st.sampled_from(sorted(GATES.gates)))
def test_what_has_come_stays_until_it_goes(fact):
    """Over all versions an answer changes no more often than its gate and its options say."""
    told = [KernelFacts(version, PROFILES, GATES).told(fact) for version in SERIES]
    values = [t.value for t in told if t is not None and t.label is not Label.RECORDED]
    changes = sum(a != b for a, b in itertools.pairwise(values))
    assert changes <= 1 or fact in GATES.needs


CAME_AND_WENT = {
    ("5.10", "option DEBUG_INFO_BTF_MODULES"),
    ("6.12", "tracepoint cgroup:cgroup_rstat_cpu_lock_contended"),
    ("6.12", "tracepoint cgroup:cgroup_rstat_cpu_lock_contended_fastpath"),
    ("6.12", "tracepoint cgroup:cgroup_rstat_cpu_locked"),
    ("6.12", "tracepoint cgroup:cgroup_rstat_cpu_locked_fastpath"),
    ("6.12", "tracepoint cgroup:cgroup_rstat_cpu_unlock"),
    ("6.12", "tracepoint cgroup:cgroup_rstat_cpu_unlock_fastpath"),
    ("6.12", "tracepoint intel_iommu:cache_tag_flush_all"),
    ("6.12", "tracepoint kmem:mm_alloc_contig_migrate_range_info"),
    ("6.18", "helper call lwt_seg6local bpf_skb_pull_data"),
}
"""What one recorded kernel has and both its neighbours have not: no neighbour can tell."""


@pytest.mark.parametrize("name", PROFILES)
def test_a_kernel_derived_without_its_profile_is_what_was_recorded(name):
    """Leave one out: all that its neighbours and the gates tell of it was seen in it, but for what came and went."""
    others = {other: profile for other, profile in PROFILES.items() if other != name}
    derived, wrong, right = KernelFacts(name, others, GATES), set(), 0
    for fact in FACTS:
        value, told = recorded(PROFILES[name], fact), derived.told(fact)
        if value is not None and told is not None:
            right += told.value == value
            if told.value != value:
                wrong.add((name, str(fact)))
    assert wrong == {entry for entry in CAME_AND_WENT if entry[0] == name}
    assert right > (2000 if name == "5.10" else 500 if name == "7.3" else 6000)


# The table itself.


ONE, TWO = "'5.1 012345678901'", "'5.2 012345678901'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format = 2", "format 2, not 1"),
        ("colour = 1\nformat = 1", "colour is no key"),
        ("[helper]\nbpf_x = '5.10'", "'5.10' is not a version and a commit"),
        ("[helper]\nbpf_x = '5.10 xyz'", "is not a version and a commit"),
        (f"[[function]]\nname = 'f'\nbefore = {ONE}", "function f: before is no key"),
        (
            f"[[function]]\nname = 'f'\nsince = {ONE}\n[[function]]\nname = 'f'\nuntil = {TWO}",
            "function f has two gates",
        ),
        (f"[[function]]\nname = 'f'\nchanged = [{TWO}, {ONE}]", "stand in their order"),
        ("[[option]]\nall = ['X']\nmap_type = ['none']", "map type none has no gate"),
        ("[[option]]\nall = ['X']\ncolour = ['red']", "not what a table of gates looks like"),
        ("[[calls]]\ntypes = ['kprobe']", "not what a table of gates looks like"),
        ("[helper", "gates: Expected"),
    ],
)
def test_a_table_that_is_off_is_refused(text, said):
    with pytest.raises(ProfileError, match=said):
        gates.parse(text if "format" in text else f"format = 1\n{text}")


def test_a_table_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ProfileError, match="No such file"):
        gates.load(tmp_path / "gates.toml")


def test_versions_follow_each_other():
    found = [gates.spelled(version) for version in GATES.between((5, 18), (6, 1))]
    assert found == ["5.18", "5.19", "6.0", "6.1"]
    with pytest.raises(ProfileError, match="no series"):
        derive.KernelFacts("newest", {}, GATES)
