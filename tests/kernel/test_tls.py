"""Uprobes in TLS libraries: every plaintext byte of a real exchange counted, once, for the process that moved it."""

import ctypes
import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from fixtures.workloads import tls as workload
from harness.ebpf import core
from harness.ebpf.settings import BpfSettings
from harness.errors import BpfError, ClosedError, FormatError, SettingsError
from harness.telemetry import Registry
from harness.watcher import tls
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    workload.certificate(directory)
    return directory


@pytest.fixture(scope="module")
def running(live, bpf_dir):
    core.reset()
    with tls.TlsProbes(live, BpfSettings(bpf_dir)) as running:
        yield running


def loaded(name):
    """The path of a library that this process has loaded (Python's own ssl has libssl)."""
    assert ssl.OPENSSL_VERSION
    maps = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in maps if f"/{name}.so" in line)


def file_of(path):
    return FilePath(PathIdentifier.of_file(path), str(path), os.getpid())


@pytest.fixture
def registry(running):
    """Real callbacks, by a real registry."""
    registry = FileRegistry("tls", metrics=Registry())
    yield registry
    registry.clear()
    assert running.hooked() == set()


def register(registry, running, path):
    registry.register(str(path), os.getpid(), running.activate, running.deactivate)


def moved(running, before):
    """This process's (received, sent) since ``before``."""
    now = running.traffic().get(os.getpid(), tls.Traffic(0, 0))
    return now.received - before.received, now.sent - before.sent


@pytest.fixture
def before(running):
    return running.traffic().get(os.getpid(), tls.Traffic(0, 0))


def test_a_real_exchange_is_counted_to_the_byte_for_each_process(running, registry, certificates, record_property):
    register(registry, running, loaded("libssl"))
    counters = running.counters()
    with workload.ends(certificates, 123_457, 54_321) as (client, server):
        traffic = running.traffic()
        assert traffic[client] == tls.Traffic(received=54_321, sent=123_457)
        assert traffic[server] == tls.Traffic(received=123_457, sent=54_321)
    after = running.counters()
    assert (after.lost, after.unread) == (counters.lost, counters.unread)
    assert after.calls > counters.calls
    assert running.forget(client) == traffic[client]
    assert running.forget(client) is None
    assert client not in running.traffic()
    record_property("kmt.tls", str(running.stage))


def test_each_of_openssls_functions_counts_once(running, registry, certificates, before):
    register(registry, running, loaded("libssl"))
    ends = workload.OpenSsl(certificates)
    assert moved(running, before) == (0, 0), "a handshake moves no plaintext"
    ends.write(1000)
    assert moved(running, before) == (0, 1000)
    ends.write_ex(200)
    assert moved(running, before) == (0, 1200)
    if hasattr(ends.lib, "SSL_write_ex2"):
        ends.write_ex(30, "SSL_write_ex2")
    else:
        ends.write(30)
    assert moved(running, before) == (0, 1230)
    assert ends.read_ex(50, "SSL_peek_ex") == 50
    assert moved(running, before) == (0, 1230), "a peek is no read"
    assert ends.read(700) == 700
    assert moved(running, before) == (700, 1230)
    while number := ends.read_ex(500):
        assert number <= 500
    assert moved(running, before) == (1230, 1230)
    assert ends.read(10) == -1, "nothing is left"
    assert moved(running, before) == (1230, 1230)


def test_each_of_gnutlss_functions_counts_once(running, registry, certificates, before):
    ends = workload.GnuTls(certificates)
    register(registry, running, loaded("libgnutls"))
    assert moved(running, before) == (0, 0)
    ends.send(1000)
    assert moved(running, before) == (0, 1000)
    assert [ends.receive(700), ends.receive(700)] == [700, 300]
    assert moved(running, before) == (1000, 1000)
    assert ends.receive(10) < 0, "nothing is left"
    assert moved(running, before) == (1000, 1000)
    registry.unregister(os.getpid())
    ends.send(5)
    assert moved(running, before) == (1000, 1000)
    ends.close()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("client", "library"),
    [
        pytest.param(["curl", "-sS", "--cacert"], "libssl.so.3", id="curl and OpenSSL"),
        pytest.param(["wget", "-q", "-O", "-", "--ca-certificate"], "libgnutls.so.30", id="wget and GnuTLS"),
    ],
)
def test_a_real_programs_download_is_counted_to_the_byte(running, registry, certificates, client, library):
    """The server, which is Python's, by OpenSSL."""
    assert ctypes.CDLL(library)
    for path in {loaded("libssl"), loaded(library.partition(".")[0])}:
        register(registry, running, path)
    body = os.urandom(3000) * 40
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with workload.https(certificates, answer) as (url, server, length):
        with subprocess.Popen([*client, certificates / "cert.pem", url], stdout=subprocess.PIPE) as process:
            assert process.stdout.read() == body
        assert process.wait() == 0
        request = length()
        assert request > 20
        traffic = running.traffic()
        assert traffic[process.pid] == tls.Traffic(received=len(answer), sent=request)
        assert traffic[server] == tls.Traffic(received=request, sent=len(answer))


@pytest.mark.thorough
def test_the_libraries_of_nss_have_nothing_to_hook(running):
    """Why: docs/decisions/watcher.md."""
    for name in ("libssl3", "libnspr4", "libnss3"):
        assert ctypes.CDLL(f"{name}.so")
        with pytest.raises(FormatError, match="exports none of SSL_read"):
            running.activate(file_of(loaded(name)))


def test_totals_are_metrics_and_stay_when_a_process_is_forgotten(live, bpf_dir, certificates):
    metrics = Registry()

    def counted():
        return {metric.name.removeprefix("usm.tls."): metric.value for metric in metrics.metrics()}

    with tls.TlsProbes(live, BpfSettings(bpf_dir), metrics=metrics) as probes:
        probes.activate(file_of(loaded("libssl")))
        ends = workload.OpenSsl(certificates)
        ends.write(1000)
        assert ends.read(700) == 700
        said = {"calls": 2, "received_bytes": 700, "sent_bytes": 1000, "lost_bytes": 0, "unread_calls": 0}
        assert counted() == said
        assert probes.forget(os.getpid()) == tls.Traffic(700, 1000)
        assert counted() == said
        ends.write(30)
    assert counted() == said | {"calls": 3, "sent_bytes": 1030}, "what was counted last is there after the end"


def test_callbacks_begin_and_end_the_counting(running, registry, certificates, before):
    ends = workload.OpenSsl(certificates)
    ends.write(10)
    assert moved(running, before) == (0, 0)
    register(registry, running, loaded("libssl"))
    ends.write(10)
    assert moved(running, before) == (0, 10)
    registry.unregister(os.getpid())
    ends.write(10)
    assert ends.read(100) == 10
    assert moved(running, before) == (0, 10)


def test_a_copy_is_another_file_and_a_second_activation_is_taken_off_too(running, tmp_path, certificates, before):
    copy = Path(shutil.copy(loaded("libssl"), tmp_path / "libssl.so.3"))
    running.activate(file_of(copy))
    workload.OpenSsl(certificates).write(10)
    assert moved(running, before) == (0, 0)
    running.deactivate(file_of(copy))
    running.deactivate(file_of(copy))
    assert running.hooked() == set()


@pytest.mark.thorough
def test_files_that_cannot_be_hooked(running, tmp_path):
    attempts = {
        "empty": b"",
        "text": b"no library at all",
        "cut": Path(loaded("libssl")).read_bytes()[:3000],
    }
    for name, content in attempts.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            running.activate(file_of(tmp_path / name))
    with pytest.raises(FormatError, match="exports none of SSL_read"):
        running.activate(file_of(loaded("libc")))
    gone = file_of(tmp_path / "text")
    (tmp_path / "text").unlink()
    with pytest.raises(FileNotFoundError):
        running.activate(gone)
    shutil.copy(loaded("libssl"), tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="another file by now"):
        running.activate(gone)
    assert running.hooked() == set()


@pytest.mark.parametrize("why", ["buildkitd has it", "containerd has it mounted", "neither"])
def test_a_library_of_an_image_that_is_built_or_unpacked_is_neither_hooked_nor_blocked(
    running, registry, tmp_path, why
):
    mount = tmp_path / "tmpmounts" / ("containerd-mount314159" if "containerd" in why else "other")
    mount.mkdir(parents=True)
    library = shutil.copy(loaded("libssl"), mount / "libssl.so.3")
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    comm.write_text("buildkitd" if "buildkitd" in why else before)
    try:
        if why == "neither":
            register(registry, running, library)
        else:
            with pytest.raises(FileNotFoundError, match="built or unpacked"):
                register(registry, running, library)
    finally:
        comm.write_text(before)
    assert len(running.hooked()) == (why == "neither")
    assert len(registry.blocklist) == 0


def test_bytes_of_processes_without_room_are_counted_as_lost(live, bpf_dir, certificates):
    with tls.TlsProbes(live, BpfSettings(bpf_dir), processes=1) as small:
        small.activate(file_of(loaded("libssl")))
        ends = workload.OpenSsl(certificates)
        with workload.ends(certificates, 1000, 0) as (client, server):
            found = small.traffic()
            assert len(found) == 1, "one of the two found room"
            assert found in ({client: (0, 1000)}, {server: (1000, 0)})
            assert small.counters().lost == 1000
            assert small.errors.maps()["tls_traffic"].keys() == {"E2BIG"}
        small.forget(*found)
        ends.write(10)
        assert small.traffic() == {os.getpid(): (0, 10)}, "there is room again"
        assert small.counters().lost == 1000


def test_attaching_by_hand(running, tmp_path):
    with pytest.raises(SettingsError, match="did you mean 'received_int'"):
        running._loaded.attach_uprobe("received_intt", "/proc/self/exe", 0)
    with pytest.raises(BpfError, match=r"attaching received_int to .*/gone"):
        running._loaded.attach_uprobe("received_int", str(tmp_path / "gone"), 0)


@pytest.mark.thorough
def test_close_takes_everything_off(live, bpf_dir, certificates):
    probes = tls.TlsProbes(live, BpfSettings(bpf_dir))
    probes.activate(file_of(loaded("libssl")))
    probes.close()
    probes.close()
    assert probes.hooked() == set()
    probes.deactivate(file_of(loaded("libssl")))
    with pytest.raises(ClosedError):
        probes.activate(file_of(loaded("libssl")))
    assert probes.hooked() == set()
