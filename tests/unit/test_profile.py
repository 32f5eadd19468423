"""Profiles: what was recorded is sound, what is damaged or contradicts itself is refused with a word for it."""

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.kernel_api import Signature
from kmt.errors import AgentError, ProfileError
from kmt.guest.wire import Frame, Kind
from kmt.kernel import Kernel
from kmt.simulator import points, record
from kmt.simulator.assemble import assemble
from kmt.simulator.profile import DIRECTORY, LARGEST, dump, parse, read, recorded
from kmt.simulator.types import Types

TEXTS = {path.stem: path.read_text() for path in sorted(DIRECTORY.glob("*.json"))}
DOCUMENTS = {name: json.loads(text) for name, text in TEXTS.items()}


def test_the_default_kernels_are_recorded():
    assert list(recorded()) == ["5.10", "6.1", "6.12", "6.18", "7.3"]


@pytest.mark.parametrize("name", TEXTS)
def test_a_recorded_profile_is_small_and_reads_back(name):
    profile = parse(TEXTS[name])
    assert dump(profile) == TEXTS[name]
    assert parse(dump(profile)) == profile
    assert profile.series == name
    assert len(TEXTS[name]) <= LARGEST
    assert max(map(len, TEXTS[name].splitlines())) <= 200


@pytest.mark.parametrize("name", TEXTS)
def test_it_says_what_the_kernels_are_known_for(name):
    profile = parse(TEXTS[name])
    new = name not in ("5.10", "6.1")
    assert profile.map_types["ringbuf"] is True
    assert profile.marks["register_fprobe_ips"] is new
    assert ("bpf_get_attach_cookie" in profile.helpers["kprobe"]) is (name != "5.10")
    assert "bpf_d_path" in profile.helpers["tracing"], "told by a program of our own: bpftool cannot"
    assert "bpf_bprm_opts_set" not in profile.helpers["tracing"]
    assert "syscalls:sys_enter_openat" in profile.tracepoints
    assert (profile.functions["tcp_sendpage"].signature is None) is new
    parameters = profile.functions["tcp_recvmsg"].signature.parameters
    assert len(parameters) == {"5.10": 6, "6.1": 5, "6.12": 5, "6.18": 5, "7.3": 4}[name]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 2}, "format 2, not 1: of a newer version"),
        ({"format": 0}, "format 0, not 1: too old"),
        ({"format": "1"}, "no profile"),
        ({"release": "linux"}, "release: 'linux' is no kernel version"),
        ({"release": 5}, "release must be of type str, not 5"),
        ({"jit": 1}, "jit must be of type bool, not 1"),
        ({"colour": "red"}, "colour is no key"),
        ({"lsm": ["bpf", "bpf"]}, "lsm names one thing twice"),
        ({"map_types": {"ringbuf": None}}, "map_types ringbuf must be of type bool"),
        ({"helpers": [["kprobe"]]}, "helpers must be pairs"),
        ({"functions": {"f": [True]}}, "functions f must be"),
        ({"functions": {"f": [True, True, [1]]}}, "functions f must be of type str"),
        ({"tracepoints": {"net": "x"}}, "tracepoints net must be of type list"),
    ],
)
def test_what_is_no_profile_is_refused_with_the_key(changed, said):
    with pytest.raises(ProfileError, match=said) as caught:
        parse(json.dumps(DOCUMENTS["6.1"] | changed), "x.json")
    assert caught.value.message.startswith("x.json: ")


def config(**options):
    return {"config": DOCUMENTS["6.1"]["config"] | options}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"program_types": {}}, "may call helpers, and there are no such programs"),
        (config(DEBUG_INFO_BTF="n"), "without DEBUG_INFO_BTF"),
        ({"other_helpers": ["bpf_loop"]}, "no program type may call bpf_loop, and"),
        ({"btf_modules": None}, "differ on whether there is BTF"),
        ({"btf": "", "btf_modules": None}, "has a signature, and there is no BTF"),
        ({"functions": {"f": [False, True, None]}}, "f can be probed, and is not in the symbol table"),
        (config(BPF_LSM="n"), "without BPF_LSM"),
        (config(TRACING="n"), "without TRACING"),
    ],
)
def test_facts_that_cannot_both_be_so_are_refused(changed, said):
    with pytest.raises(ProfileError, match=said) as caught:
        parse(json.dumps(DOCUMENTS["6.1"] | changed))
    assert "both cannot be so" in str(caught.value)


def test_a_missing_key_and_broken_json_are_told_where():
    with pytest.raises(ProfileError, match="lockdown is missing"):
        parse(json.dumps({k: v for k, v in DOCUMENTS["6.1"].items() if k != "lockdown"}))
    with pytest.raises(ProfileError, match=r"x\.json:2: "):
        parse('{\n"format": 1,,', "x.json")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ProfileError, match="No such file"):
        read(tmp_path / "none.json")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match=r"odd\.json"):
        recorded(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(DOCUMENTS["6.1"])), values)
def test_any_value_for_any_key_reads_or_is_refused(key, value):
    try:
        profile = parse(json.dumps(DOCUMENTS["6.1"] | {key: value}))
    except ProfileError:
        return
    assert parse(dump(profile)) == profile


def test_of_two_of_a_series_the_newer_counts(tmp_path):
    old = dataclasses.replace(parse(TEXTS["6.1"]), release="6.1.0-9-cloud-amd64")
    (tmp_path / "a.json").write_text(TEXTS["6.1"])
    (tmp_path / "b.json").write_text(dump(old))
    assert recorded(tmp_path)["6.1"].release == parse(TEXTS["6.1"]).release


def test_configurations_are_read_as_they_are_written():
    found = points.configuration("CONFIG_BPF=y\nCONFIG_HZ=250\n# CONFIG_FPROBE is not set\nCONFIG_NET_CLS_BPF=m\n")
    assert (found["BPF"], found["HZ"], found["FPROBE"], found["NET_CLS_BPF"]) == ("y", "250", "n", "m")
    assert found.keys() == set(points.OPTIONS)


# What a guest says, put together.

SAID = {
    "release": "6.1.0", "version": "#1", "machine": "x86_64", "symbols": ["tcp_close", "register_fprobe_ips"],
    "traceable": ["tcp_close"], "tracepoints": ["net:netif_rx"], "btf": "", "btf_modules": [], "lsm": "yama,bpf",
    "lockdown": "[none] integrity", "jit": "1", "helpers": {"tracing": ["d_path"], "lsm": None},
}  # fmt: skip
FEATURES = {
    "program_types": {"have_kprobe_prog_type": True, "have_xdp_prog_type": False},
    "map_types": {"have_hash_map_type": True, "have_arena_map_type": False},
    "helpers": {"kprobe_available_helpers": ["bpf_ktime_get_ns"], "xdp_available_helpers": []},
}
TOOLS = {"version": "7.5.0", "libbpf_version": "1.5"}


CONFIG = "CONFIG_BPF_LSM=y\nCONFIG_TRACING=y\n"


@pytest.fixture
def kernel(tmp_path):
    (tmp_path / "config").write_text(CONFIG)
    return Kernel("mine", "6.1.0", tmp_path, None, tmp_path / "config", (), None, "", "here")


def test_what_could_not_be_told_is_left_out(kernel):
    types = Types.parse(ENUMERATION)
    said = SAID | {"btf": hashlib.sha256(ENUMERATION).hexdigest()}
    profile = assemble(kernel, CONFIG, types, ENUMERATION, said, FEATURES, TOOLS)
    assert profile.map_types == {"hash": True}, "the kernel's headers name arenas: that none could be made says nothing"
    assert profile.program_types == {"kprobe": True, "xdp": False}
    assert profile.helpers == {"kprobe": frozenset({"bpf_ktime_get_ns"}), "tracing": frozenset({"bpf_d_path"})}
    assert profile.functions["tcp_close"].traceable
    assert not profile.functions["tcp_connect"].symbol
    assert profile.marks["register_fprobe_ips"]
    assert (profile.lsm, profile.lockdown, profile.jit) == (("yama", "bpf"), "none", True)


@pytest.mark.parametrize(
    ("changed", "said"), [({"release": "6.2.0"}, "runs 6.2.0, not 6.1.0"), ({"btf": "00"}, "not the one in its image")]
)
def test_a_guest_that_is_another_kernel_is_not_believed(kernel, changed, said):
    with pytest.raises(ProfileError, match=said):
        assemble(kernel, CONFIG, None, b"", SAID | changed, FEATURES, TOOLS)


def test_without_a_configuration_there_is_no_profile(kernel):
    with pytest.raises(ProfileError, match="configuration"):
        record.record(Guest(), dataclasses.replace(kernel, config=None))


class Guest:
    """The end of a link that answers each command with the next of its answers."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def start(self, argv):
        out, status = self._answers.pop(0)
        return iter([Frame(Kind.OUTPUT, {}, b"\x01" + out), Frame(Kind.EXIT, {"status": status}, b"")])


@pytest.mark.parametrize("answer", [(b"Killed", -9), (b"no JSON", 0)])
def test_a_command_that_fails_in_the_guest_is_told(kernel, answer):
    with pytest.raises(AgentError, match="python3 in the guest ended with"):
        record.record(Guest(answer), kernel)


def raw_enumeration(name, values):
    """BTF with one enumeration."""
    strings, offsets = b"\0", []
    for word in (name, *values):
        offsets.append(len(strings))
        strings += word.encode() + b"\0"
    kinds = struct.pack("<III", offsets[0], 6 << 24 | len(values), 4)
    kinds += b"".join(struct.pack("<Ii", offset, number) for number, offset in enumerate(offsets[1:]))
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(kinds), len(kinds), len(strings)) + kinds + strings


ENUMERATION = raw_enumeration("bpf_map_type", ["BPF_MAP_TYPE_HASH", "BPF_MAP_TYPE_ARENA"])


def test_signatures_survive():
    function = parse(TEXTS["7.3"]).functions["tcp_close"]
    assert function.signature == Signature(("struct sock *", "long int"), "void")


def test_profiles_lie_where_the_package_has_them():
    assert DIRECTORY.resolve() == Path(__file__).parents[2] / "fixtures/profiles"
