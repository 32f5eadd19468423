"""``kmt.boundary`` on our own objects: from the cached kernels' files, and with the real kernels on both sides."""

import json
import struct
from pathlib import Path

import pytest

from kmt import archive, build, config
from kmt.commands import boundary as command
from kmt.commands import matrix
from kmt.errors import CannotTellError, ConfigError
from kmt.simulator import objects

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built():
    """The project's objects by name, with the default kernels in the cache."""
    settings = config.load(ROOT)
    kernels = archive.prepare_all(matrix.rows(settings, (), "default"), config=settings)
    assert [name for name, kernel in kernels.items() if isinstance(kernel, Exception)] == []
    return build.build(settings).objects


def ask(image, program, target, **options):
    """What is printed, and the one program of the JSON file."""
    said = command.boundary(ROOT, image, program, kernels=["default"], target=target, **options)
    (found,) = json.loads(target.read_text())["programs"]
    return said, found


@pytest.mark.parametrize(
    ("program", "oldest", "ends", "last"),
    [
        ("tcp_recvmsg_exit_6", "5.10", "6.1", "reads value 7 of tcp_recvmsg, which has 5 and a result"),
        ("tcp_recvmsg_exit_5", "6.1", "7.3", "reads value 6 of tcp_recvmsg, which has 4 and a result"),
        ("inet_csk_accept_exit_4", "5.10", "6.12", "reads value 5 of inet_csk_accept, which has 2 and a result"),
        ("tcp_sendpage_exit", "5.10", "6.12", "no function tcp_sendpage"),
        ("tcp_connect", "5.10", None, ""),
    ],
)
def test_the_kernels_files_say_where_programs_begin_and_end(built, tmp_path, program, oldest, ends, last):
    said, found = ask(built["tracer-fentry"], program, tmp_path / "b.json", static=True)
    assert (found["oldest"], found["not_before"], found["ends"]) == (oldest, "5.7", ends)
    assert last in said
    assert "Linux 5.6: no helper call tracing bpf_get_ns_current_pid_tgid" in said
    assert all(kernel["trial"] is None for kernel in found["kernels"])


@pytest.mark.parametrize("target", ["/proc/no/such.json", "/proc"])
def test_a_file_that_cannot_be_written_is_said_before_any_kernel_boots(built, monkeypatch, target):
    monkeypatch.setattr(command, "look", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(ConfigError, match="name another file"):
        command.boundary(ROOT, built["tracer-fentry"], "tcp_connect", kernels=["default"], target=Path(target))


def test_the_real_kernels_on_both_sides_say_it_themselves(built, tmp_path):
    said, found = ask(built["tracer-fentry"], "tcp_recvmsg_exit_6", tmp_path / "b.json")
    first, second, *others = found["kernels"]
    assert first["trial"] == {"loads": True, "attaches": True, "error": "", "log": ""}
    assert second["trial"]["loads"] is False
    assert "EACCES" in second["trial"]["error"]
    assert "invalid bpf_context access" in second["trial"]["log"]
    assert [kernel["trial"] for kernel in others] == [None] * len(others)
    assert "tcp_recvmsg_exit_6 on 6.1: program tcp_recvmsg_exit_6 was rejected: EACCES" in said


def test_a_program_that_is_not_there_is_told_with_the_nearest(built):
    with pytest.raises(ConfigError, match=r"no program 'tcp_conect' \(did you mean 'tcp_connect'"):
        command.boundary(ROOT, built["tracer-fentry"], "tcp_conect", static=True)


def test_a_section_of_no_known_type_is_told(built):
    image = built["tracer-fentry"].read_bytes().replace(b"fexit/tcp_recvmsg", b"fexiX/tcp_recvmsg")
    with pytest.raises(CannotTellError, match="section 'fexiX/tcp_recvmsg' is of no known type"):
        objects.parse(image)


def test_a_relocation_of_an_unknown_kind_is_told(built):
    image = bytearray(built["tracer-fentry"].read_bytes())
    extension = objects.elf.contents(bytes(image))[".BTF.ext"]
    header, (offset,) = struct.unpack_from("<I", extension, 4)[0], struct.unpack_from("<I", extension, 24)
    kind = image.index(extension) + header + offset + 4 + 8 + 12
    image[kind] = 99
    with pytest.raises(CannotTellError, match="unknown kind 99"):
        objects.parse(bytes(image))


def test_what_is_for_the_gpl_only_no_kernel_lends_to_others(built, tmp_path):
    image = built["shared-libraries"].read_bytes()
    other = tmp_path / "other.o"
    other.write_bytes(image.replace(objects.elf.contents(image)["license"], b"BSD\0"))
    said, found = ask(other, "tracepoint__syscalls__sys_enter_openat", tmp_path / "b.json", static=True)
    assert {kernel["answer"] for kernel in found["kernels"]} == {"no"}
    assert "is for programs under the GPL, and its license is 'BSD'" in said


def test_an_object_without_programs_or_cut_short_is_told(built):
    image = built["hooks"].read_bytes()
    for length in range(0, len(image), 997):
        with pytest.raises(CannotTellError):
            objects.parse(image[:length])
