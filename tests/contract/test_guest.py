"""What a test may expect of a guest, asked of the oldest and the newest kernel that boots by default."""

import re

import pytest
from machines import guest, kernel, output

from kmt.backends.base import Machine

pytestmark = pytest.mark.host_only

MOUNTS = {
    "/proc": "proc",
    "/sys": "sysfs",
    "/dev": "devtmpfs",
    "/dev/pts": "devpts",
    "/dev/shm": "tmpfs",
    "/run": "tmpfs",
    "/tmp": "tmpfs",
    "/sys/fs/bpf": "bpf",
    "/sys/fs/cgroup": "cgroup2",
    "/sys/kernel/tracing": "tracefs",
    "/sys/kernel/debug": "debugfs",
    "/": "overlay",
}


@pytest.fixture(scope="module", params=["5.10", "7.3"])
def link(request, tmp_path_factory):
    with guest(tmp_path_factory.mktemp("guest"), kernel_name=request.param) as (_, link):
        link.kernel = kernel(request.param)
        yield link


def said(link, command):
    text, status = output(link, "sh", "-c", command)
    assert status == 0, text
    return text.decode().strip()


def test_file_systems(link):
    mounted = {line.split()[1]: line.split()[2] for line in said(link, "cat /proc/mounts").splitlines()}
    assert {path: mounted.get(path) for path in MOUNTS} == MOUNTS


def test_its_own_modules_load(link):
    assert said(link, "uname -r") == link.kernel.release
    said(link, "modprobe virtio_rng && grep -q ^virtio_rng /proc/modules")


def test_headers_and_configuration_are_its_own(link):
    assert said(link, "test -f /lib/modules/$(uname -r)/build/Makefile && readlink -f /lib/modules/$(uname -r)/build")
    assert said(link, "grep -c CONFIG_BPF_SYSCALL=y /boot/config-$(uname -r)") == "1"


def test_everything_can_be_written_and_nothing_is_kept(link):
    said(link, "touch /etc/x /usr/lib/x /lib/modules/x /opt/x && rm /etc/debian_version")


def test_limits_network_and_names(link):
    assert said(link, "ulimit -l") == "unlimited"
    assert said(link, "cat /sys/class/net/lo/operstate /sys/class/net/lo/flags").split() == ["unknown", "0x9"]
    assert said(link, "ls /sys/class/net") == "lo"
    assert re.fullmatch(rf"kmt-{re.escape(link.kernel.name)}(-[0-9a-f]{{8}})?", said(link, "hostname"))
    assert said(link, "cat /proc/sys/kernel/core_pattern") == "/run/kmt/artifacts/core.%e.%p"
    assert said(link, "readlink /dev/stdin /dev/fd").split() == ["/proc/self/fd/0", "/proc/self/fd"]


def test_bpf_is_a_security_module(link):
    assert "bpf" in said(link, "cat /sys/kernel/security/lsm").split(",")


def test_orphans_are_reaped(link):
    said(link, "for i in 1 2 3; do (setsid sleep 0.2 &) ; done; sleep 1")
    assert said(link, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true") == "0"


def test_two_processors_where_they_are_asked_for(tmp_path):
    with guest(tmp_path, machine=Machine(cpus=2, memory_mib=512)) as (_, link):
        assert said(link, "nproc") == "2"


def test_the_compiler_where_it_is_asked_for(tmp_path):
    with guest(tmp_path, machine=Machine(memory_mib=1024, compiler=True), seconds=120) as (_, link):
        said(link, "echo 'int f(void) { return 0; }' > /tmp/f.c && clang -O2 -target bpf -c /tmp/f.c -o /tmp/f.o")
