"""What the kernel's files say of a program is what the kernel does with it: every verdict of ``kmt.boundary`` on it."""

import dataclasses

import pytest

from harness.ebpf.btf import SYSFS
from kmt.simulator import gates, objects, trial
from kmt.simulator.boundary import Row, Trial
from kmt.simulator.derive import KernelFacts
from kmt.simulator.judge import Answer, Image, Names, judge, overall
from kmt.simulator.profile import recorded
from kmt.simulator.sections import Target
from kmt.simulator.types import Types

pytestmark = [pytest.mark.real, pytest.mark.thorough, pytest.mark.requires("btf", "root")]

CHANGING = ("inet_csk_accept", "tcp_recvmsg", "tcp_sendpage")


@pytest.fixture(scope="module")
def image(kernel):
    profiles = recorded()
    series = ".".join(kernel.release.split(".")[:2])
    config = dict(profiles[series].config) if series in profiles else {}
    told = KernelFacts(series, profiles, gates.load())
    return Image(kernel.name, kernel.release, Types.parse(SYSFS.read_bytes()), config, told)


@pytest.mark.parametrize("name", ["hooks", "processes", "shared-libraries", "tracer-fentry"])
def test_the_files_say_what_the_kernel_does(name, image, bpf_dir):
    data = (bpf_dir / "co-re" / f"{name}.o").read_bytes()
    whole = objects.parse(data)
    wrong, asked = [], 0
    for program in whole.programs:
        if name == "tracer-fentry" and not program.name.startswith(CHANGING):
            continue
        said = judge(program, whole, image, Names.of(image.types))
        function = program.place.name if program.place.sort.target is Target.FUNCTION else ""
        wanted = {"name": program.name, "function": function, "attach": program.place.attachable}
        row = Row(image.name, image.release, said, Trial(**trial.attempt(data, wanted, list(whole.unsized))))
        asked += 1
        if overall(said) is not Answer.UNKNOWN and overall(said) is not row.answer:
            wrong.append((program.name, str(overall(said)), [f.words for f in said], dataclasses.asdict(row.trial)))
    assert asked == len(whole.programs) or name == "tracer-fentry"
    assert wrong == []


def test_a_field_that_the_kernel_has_not_is_seen_before_it_refuses(image, bpf_dir):
    data = (bpf_dir / "co-re/tracer-fentry.o").read_bytes().replace(b"\0skc_family\0", b"\0skc_familx\0")
    whole = objects.parse(data)
    names = Names.of(image.types)
    program = next(p for p in whole.programs if "skc_familx" in str(judge(p, whole, image, names)))
    assert overall(judge(program, whole, image, names)) is Answer.NO
    wanted = {"name": program.name, "function": program.place.name, "attach": True}
    said = trial.attempt(data, wanted, list(whole.unsized))
    assert not said["loads"]
    assert said["log"]
