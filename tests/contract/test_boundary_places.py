"""``kmt.boundary`` on programs whose section says more than libbpf attaches by, with maps that take no size, and with
functions that call each other inside ``.text``."""

import json
import random
import struct

import pytest

from kmt import archive, build, config
from kmt.commands import boundary as command
from kmt.commands import matrix
from kmt.errors import CannotTellError
from kmt.simulator import objects, reach

pytestmark = pytest.mark.host_only

PROJECT = """
[project]
name = "places"
version = "0"
[tool.kmt]
sources = ["places.bpf.c"]
"""
SOURCE = """
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct { __uint(type, BPF_MAP_TYPE_SK_STORAGE); __uint(map_flags, BPF_F_NO_PREALLOC);
         __type(key, int); __type(value, __u64); } storage SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); __uint(key_size, 4); __uint(value_size, 4); } perf SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, int); __type(value, int); } unsized SEC(".maps");

/* In the order of their places: what is counted from a wrong one is another function. */
static __attribute__((noinline)) int first(__u64 x) { return x + bpf_get_smp_processor_id(); }
static __attribute__((noinline)) int second(__u64 x) { return x + bpf_get_prandom_u32(); }
static __attribute__((noinline)) int third(__u64 x) { return second(x) * 3 + 1; }

SEC("cgroup_skb/ingress") int on_skb(struct __sk_buff *ctx)
{
    struct bpf_sock *sk = ctx->sk;
    if (sk)
        bpf_sk_storage_get(&storage, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    return 1;
}
SEC("tc/ingress") int on_tc(struct __sk_buff *ctx) { return third(ctx->len) & 1; }
SEC("sk_skb/stream_parser") int on_stream(struct __sk_buff *ctx) { return ctx->len; }
SEC("xdp/devmap") int on_xdp(struct xdp_md *ctx) { return first(ctx->rx_queue_index) & 1 ? XDP_PASS : XDP_DROP; }
SEC("uprobe//nowhere/at/all:main") int on_uprobe(void *ctx)
{ int key = 0; bpf_map_lookup_elem(&unsized, &key); return 0; }
struct task_struct { int pid; } __attribute__((preserve_access_index));
SEC("kprobe.multi/tcp_close*") int on_many(void *ctx)
{
    struct task_struct *task = (void *)bpf_get_current_task();
    int pid = 0;
    bpf_probe_read_kernel(&pid, sizeof(pid), &task->pid);
    return pid & 1;
}
SEC("iter/task") int on_iter(void *ctx) { return 0; }
SEC("iter/bpf_map_elem") int on_elements(void *ctx) { return 0; }
SEC("tp/syscalls/sys_enter_getpgid") int on_call(void *ctx)
{ int word = 1; bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, &word, sizeof(word)); return 0; }
char _license[] SEC("license") = "GPL";
"""
ATTACHED = {"on_many", "on_iter", "on_call"}
"""Those that libbpf attaches by their section."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "places.bpf.c").write_text(SOURCE)
    return root


@pytest.fixture(scope="module")
def image(project):
    return build.build(config.load(project)).objects["places"]


@pytest.fixture(scope="module")
def whole(image):
    return objects.parse(image.read_bytes())


def test_a_real_kernel_refuses_none_of_them(project, image, tmp_path):
    settings = config.load(project)
    archive.prepare_all(matrix.rows(settings, ("6.12",), "default"), config=settings)
    said = command.boundary(project, image, kernels=["6.12"], target=tmp_path / "b.json")
    programs = json.loads((tmp_path / "b.json").read_text())["programs"]
    rows = {program["program"]: program["kernels"][0] for program in programs}
    assert len(rows) == 9
    assert {name for name, row in rows.items() if row["answer"] != "yes"} == set(), said
    assert {name for name, row in rows.items() if row["trial"]["attaches"]} == ATTACHED
    assert {name for name, row in rows.items() if row["trial"]["attaches"] is False} == set()


def test_maps_that_take_no_size_get_none(whole):
    assert set(whole.maps) == {"storage", "perf", "unsized"}
    assert whole.unsized == ("unsized",)


@pytest.mark.parametrize(("name", "helper", "other"), [("on_tc", 7, 8), ("on_xdp", 8, 7)])
def test_calls_inside_text_lead_where_they_say(whole, name, helper, other):
    program = next(program for program in whole.programs if program.name == name)
    seen, _ = reach.follow(program.code, whole, None)
    assert helper in seen.helpers
    assert other not in seen.helpers


@pytest.mark.parametrize("section", [".BTF", ".BTF.ext", ".symtab", ".strtab", ".text", ".reltc/ingress"])
def test_whatever_stands_inside_its_sections_is_an_object_or_an_error(image, section):
    """Bytes changed inside a section: it is read and followed, or told, and always comes to an end."""
    data = image.read_bytes()
    content = objects.elf.contents(data)[section]
    begin = data.index(content)
    kernel = objects.parse(data).types
    dice = random.Random(section)
    told = 0
    for _ in range(80):
        broken = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 8))):
            broken[begin + dice.randrange(len(content))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        try:
            read = objects.parse(bytes(broken))
            for program in read.programs:
                reach.follow(program.code, read, kernel)
        except CannotTellError:
            told += 1
    assert told > 0 or section not in (".BTF", ".symtab")


@pytest.mark.parametrize("size", [0, 4, 15])
def test_relocations_that_take_no_room_are_told(image, size):
    """As many as there can be, in a section that has few bytes: nobody counts to the end."""
    data = bytearray(image.read_bytes())
    extension = objects.elf.contents(bytes(data))[".BTF.ext"]
    header, offset = struct.unpack_from("<I", extension, 4)[0], struct.unpack_from("<I", extension, 24)[0]
    at = bytes(data).index(extension) + header + offset
    assert struct.unpack_from("<I", data, at) == (16,)
    struct.pack_into("<I", data, at, size)
    struct.pack_into("<I", data, at + 8, 0xFFFFFFFF)
    with pytest.raises(CannotTellError, match=f"CO-RE relocations of {size} bytes each"):
        objects.parse(bytes(data))
