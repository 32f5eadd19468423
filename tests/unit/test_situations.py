"""What is told of an error: the same of the same refusal, whatever version says it, and another of another."""

import errno

import pytest
from situations import told

from harness.errors import BpfError, VerifierError
from kmt.errors import CannotTellError

SAID = {
    "Error in bpf_object__probe_loading(): Operation not permitted(1). Couldn't load trivial BPF program. Make sure "
    "your kernel supports BPF": ["no right to load"],
    "Error in bpf_object__probe_loading():EPERM(1). Couldn't load trivial BPF program.": ["no right to load"],
    "kernel BTF is missing at '/sys/kernel/btf/vmlinux', was CONFIG_DEBUG_INFO_BTF enabled?; Error loading vmlinux "
    "BTF: -3": ["no BTF of the kernel"],
    "map 'hits': failed to create: Invalid argument(-22); failed to load object 'hooks'": ["a map", "hits"],
    "map 'ring': failed to create: -E2BIG; failed to load object 'maps'": ["a map", "ring"],
    "prog 'on_fentry': failed to find kernel BTF type ID of 'gone': -3": [
        "no function to attach to",
        "on_fentry",
        "gone",
    ],
    "prog 'obey': relo #3: relocation decision ambiguity: success 8 != success 16": ["an ambiguous relocation"],
    "prog 'obey': BPF program load failed: Resource temporarily unavailable": ["a program", "obey"],
    "something new": ["loading object x: EINVAL (Invalid argument): something new"[:60]],
}


@pytest.mark.parametrize("detail", SAID)
def test_libbpf_s_words_are_told_by_their_sort(detail):
    error = BpfError("loading object x", errno.EINVAL, detail=detail)
    assert told(error) == ["BpfError", "loading object x", "EINVAL", *SAID[detail]]


def test_words_on_attaching_are_not_told():
    """They name numbers of perf events and files."""
    assert told(BpfError("attaching x to kprobe/y", errno.ENOENT, detail="z")) == [
        "BpfError",
        "attaching x to kprobe/y",
        "ENOENT",
    ]


def test_the_verifier_s_words_are_told_by_their_sort():
    old = VerifierError(
        "p", errno.EACCES, "", "0: (85) call bpf_map_lookup_elem#1\ninvalid stack type R2 off=-8 access_size=0"
    )
    new = VerifierError("p", errno.EACCES, "", "0: (85) call bpf_map_lookup_elem#1\nR2 invalid zero-sized read")
    assert told(old) == told(new) == ["VerifierError", "p", "EACCES", "behind the stack"]


def test_what_could_not_be_told_is_no_outcome():
    lost = BpfError("loading object x", errno.EINVAL)
    lost.__cause__ = CannotTellError("whether it has it")
    with pytest.raises(CannotTellError):
        told(lost)
