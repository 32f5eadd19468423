"""The archive when it is well and when it is not, with real apt and dpkg against a signed repository on loopback."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
from apt_repository import Key, Repository, Server, deb, image

from kmt import archive, paths
from kmt.archive import apt, lock, unpack
from kmt.config import Config
from kmt.errors import ArchiveError, MirrorError, UnavailableError
from kmt.matrix import Row, Source

pytestmark = pytest.mark.host_only

OLD, NEW = "6.1.0-55-cloud-amd64", "6.1.0-56-cloud-amd64"
ROW = Row("6.1", "6.1", suites=("bookworm",))


@pytest.fixture(scope="session")
def key():
    made = Key()
    yield made
    made.close()


@pytest.fixture
def repository(tmp_path, key):
    return Repository(tmp_path / "mirror" / "debian", key)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "mirror").mkdir(exist_ok=True)
    made = Server(tmp_path / "mirror")
    yield made
    made.close()


@pytest.fixture
def config(tmp_path, key, server, monkeypatch):
    """A project whose machine has a cache of its own and the server for a mirror; apt is quick to give up."""
    (tmp_path / "direct.conf").write_text('Acquire::http::Proxy::127.0.0.1 "DIRECT";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "direct.conf"))
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KMT_MIRROR", f"{server.uri}/debian")
    monkeypatch.setenv("KMT_KEYRING", str(key.public))
    monkeypatch.setattr(apt, "TIMEOUT", 1)
    monkeypatch.setattr(apt, "RETRIES", 0)
    (tmp_path / "project").mkdir()
    return Config(tmp_path / "project")


def forget(*rooms):
    """Empty rooms of the cache."""
    for room in rooms:
        shutil.rmtree(paths.cache(room))


def cached_packages():
    return sorted(p.name for p in paths.cache("packages").iterdir())


def test_a_kernel_and_its_headers_are_fetched_once_and_need_no_network_again(repository, server, config):
    repository.kernel("bookworm", OLD)
    repository.kernel("bookworm", NEW)
    repository.publish()
    told = []
    kernel = archive.prepare(ROW, config=config, progress=lambda *said: told.append(said))
    assert (kernel.name, kernel.release, kernel.btf) == ("6.1", NEW, None)
    assert kernel.vmlinuz.read_bytes() == image(NEW)
    assert kernel.config.read_text() == "CONFIG_BPF=y\n"
    assert (kernel.modules / "modules.dep").is_file()
    assert kernel.modules.name == NEW
    assert not (kernel.modules / "build").is_symlink()
    assert [p.name for p in kernel.headers] == [f"linux-headers-{NEW}", f"linux-headers-{NEW}-common"]
    assert (kernel.headers[1] / "include" / "x.h").is_file()
    label, done, total = told[-1]
    assert label == "6.1"
    assert done == total == sum(p.stat().st_size for p in paths.cache("packages").iterdir())
    server.close()
    assert archive.prepare(ROW, config=config) == kernel


def test_a_split_kernel_without_headers(repository, config):
    repository.split_kernel("trixie-backports", "7.3.4+deb13-cloud-amd64")
    repository.publish()
    kernel = archive.prepare(Row("7.3", "7.3", suites=("trixie-backports",)), config=config)
    assert kernel.headers == ()
    assert kernel.vmlinuz.read_bytes() == image(kernel.release)
    assert kernel.config.is_file()
    assert not (kernel.modules / "vmlinuz").exists()


def test_security_suites_come_from_the_security_archive(tmp_path, key, repository, config):
    repository.kernel("bookworm", OLD, headers=False)
    repository.publish()
    security = Repository(tmp_path / "mirror" / "debian-security", key)
    security.kernel("bookworm-security", NEW, headers=False)
    security.publish()
    kernel = archive.prepare(Row("6.1", "6.1", suites=("bookworm", "bookworm-security")), config=config)
    assert kernel.release == NEW
    assert "bookworm-security" in kernel.origin


def test_a_row_may_bring_an_archive_of_its_own(tmp_path, key, server, config):
    other = Repository(tmp_path / "mirror" / "ubuntu", key)
    release = "5.15.0-100-generic"
    other.kernel("jammy", release, headers=False)
    other.publish()
    source = Source(f"{server.uri}/ubuntu", key.public)
    kernel = archive.prepare(Row("5.15", "5.15", "generic", suites=("jammy",), archive=source), config=config)
    assert kernel.release == release


def test_a_mirror_that_is_a_directory(repository, config, monkeypatch):
    repository.kernel("bookworm", NEW)
    repository.publish()
    monkeypatch.setenv("KMT_MIRROR", f"file:{repository.root}")
    assert archive.prepare(ROW, config=config).release == NEW
    assert not any(p.is_symlink() for p in paths.cache("packages").iterdir())


def test_the_pin_stays_until_it_is_moved(repository, config):
    repository.kernel("bookworm", OLD)
    repository.publish()
    assert archive.prepare(ROW, config=config).release == OLD
    repository.kernel("bookworm", NEW)
    repository.publish()
    assert archive.prepare(ROW, config=config).release == OLD
    assert archive.describe(ROW, config=config).release == OLD
    assert archive.prepare(ROW, config=config, update=True).release == NEW
    assert archive.prepare(ROW, config=config).release == NEW


def test_a_lock_file_in_the_project_is_enough_without_any_index(tmp_path, repository, server, config):
    config = Config(config.root, lock="kernels.lock")
    repository.kernel("bookworm", OLD)
    repository.publish()
    archive.prepare(ROW, config=config)
    before = (config.root / "kernels.lock").read_text()
    assert server.uri not in before
    repository.kernel("bookworm", NEW)
    repository.publish()
    shutil.rmtree(tmp_path / "cache")
    server.asked.clear()
    assert archive.prepare(ROW, config=config).release == OLD
    assert not [path for path in server.asked if "/dists/" in path]
    assert (config.root / "kernels.lock").read_text() == before


def test_a_pinned_package_that_has_gone_is_told_with_what_is_there_instead(repository, config):
    repository.kernel("bookworm", OLD, "6.1.55-1")
    repository.publish()
    archive.prepare(ROW, config=config)
    repository.remove("bookworm", f"linux-image-{OLD}")
    repository.kernel("bookworm", NEW)
    repository.publish()
    forget("kernels", "packages")
    with pytest.raises(UnavailableError) as caught:
        archive.prepare(ROW, config=config)
    for words in (f"linux-image-{OLD} 6.1.55-1", f"{NEW} is there now", "kmt.fetch --update"):
        assert words in str(caught.value)
    assert archive.prepare(ROW, config=config, update=True).release == NEW


def test_a_series_that_has_gone_is_told_with_what_is_there_instead(repository, config):
    repository.kernel("bookworm", OLD)
    repository.publish()
    archive.prepare(ROW, config=config)
    repository.remove("bookworm", "linux-")
    repository.kernel("bookworm", "6.12.9+deb12-cloud-amd64")
    repository.publish()
    forget("kernels", "packages")
    with pytest.raises(UnavailableError, match=r"pinned .* has gone .* no 6\.1 kernel .* there now: 6\.12"):
        archive.prepare(ROW, config=config)
    with pytest.raises(UnavailableError, match=r"no 6\.1 kernel .* there now: 6\.12"):
        archive.prepare(ROW, config=config, update=True)


def test_a_suite_that_has_gone_is_told_only_when_no_other_has_the_kernel(repository, config):
    repository.kernel("bookworm", NEW)
    repository.publish()
    assert archive.prepare(Row("6.1", "6.1", suites=("bookworm", "gone")), config=config).release == NEW
    with pytest.raises(UnavailableError, match="the archive has no gone of"):
        archive.prepare(Row("x", "6.1", suites=("gone",)), config=config)


def damage_by_cutting(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_by_changing(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_changing, os.remove])
def test_a_damaged_package_in_the_cache_is_fetched_again(repository, server, config, damage):
    repository.kernel("bookworm", NEW)
    repository.publish()
    kernel = archive.prepare(ROW, config=config)
    forget("kernels")
    (name,) = [n for n in cached_packages() if n.startswith("linux-image")]
    damage(paths.cache("packages") / name)
    server.asked.clear()
    assert archive.prepare(ROW, config=config) == kernel
    assert server.packages_asked() == [f"linux-image-{NEW}_1-1_amd64.deb"]


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_changing, os.remove])
def test_a_damaged_kernel_in_the_cache_is_unpacked_again(repository, server, config, damage):
    repository.kernel("bookworm", NEW)
    repository.publish()
    kernel = archive.prepare(ROW, config=config)
    damage(kernel.vmlinuz)
    assert not archive.describe(ROW, config=config).cached
    server.asked.clear()
    assert archive.prepare(ROW, config=config).vmlinuz.read_bytes() == image(NEW)
    assert server.asked == []


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_changing])
@pytest.mark.parametrize("locked", [False, True])
def test_a_package_that_is_changed_on_the_mirror_is_refused(repository, config, damage, locked):
    path = repository.kernel("bookworm", NEW, headers=False)
    repository.publish()
    if locked:
        archive.prepare(ROW, config=config)
        forget("kernels", "packages")
    damage(path)
    with pytest.raises(ArchiveError, match="not what the index says") as caught:
        archive.prepare(ROW, config=config)
    assert not isinstance(caught.value, (UnavailableError, MirrorError))
    assert path.name in str(caught.value)
    assert cached_packages() == []


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_changing, os.remove])
def test_a_damaged_index_in_the_cache_is_fetched_again(repository, config, damage):
    repository.kernel("bookworm", NEW)
    repository.publish()
    archive.prepare(ROW, config=config)
    (index,) = paths.cache("apt").glob("bookworm-*/lists/*_Packages*")
    before = index.read_bytes()
    damage(index)
    archive.fetch_packages("bookworm", [f"linux-image-{NEW}"])
    assert index.read_bytes() == before


def test_an_index_that_somebody_changed_is_refused(repository, config):
    repository.kernel("bookworm", NEW)
    repository.publish()
    (index,) = repository.root.rglob("Packages")
    damage_by_changing(index)
    with pytest.raises(MirrorError, match="cannot be read"):
        archive.prepare(ROW, config=config)


def test_an_archive_without_a_signature_is_refused(repository, config):
    repository.kernel("bookworm", NEW)
    repository.publish(signed=False)
    with pytest.raises(MirrorError, match="signature could not be checked"):
        archive.prepare(ROW, config=config)


def test_an_archive_signed_by_somebody_else_is_refused(tmp_path, repository, config, monkeypatch):
    repository.kernel("bookworm", NEW)
    repository.publish()
    stranger = Key()
    try:
        monkeypatch.setenv("KMT_KEYRING", str(stranger.public))
        with pytest.raises(MirrorError, match="signature could not be checked"):
            archive.prepare(ROW, config=config)
    finally:
        stranger.close()
    assert cached_packages() == []


def test_a_mirror_that_is_down_is_not_a_kernel_that_is_gone(repository, server, config):
    repository.kernel("bookworm", NEW)
    repository.publish()
    archive.prepare(ROW, config=config)
    server.close()
    forget("kernels", "packages")
    with pytest.raises(MirrorError, match="does not answer") as caught:
        archive.prepare(ROW, config=config)
    assert not isinstance(caught.value, UnavailableError)
    with pytest.raises(MirrorError, match="cannot be read"):
        archive.prepare(ROW, config=config, update=True)


@pytest.mark.parametrize("broken", ["InRelease", ".deb"])
def test_a_mirror_that_is_ill_is_not_a_kernel_that_is_gone(repository, server, config, broken):
    repository.kernel("bookworm", NEW)
    repository.publish()
    server.broken = broken
    with pytest.raises(MirrorError, match="503"):
        archive.prepare(ROW, config=config)


@pytest.mark.parametrize("stalled", ["InRelease", ".deb"])
def test_a_mirror_that_stalls_is_given_up(repository, server, config, stalled):
    repository.kernel("bookworm", NEW)
    repository.publish()
    server.stall = stalled
    began = time.monotonic()
    with pytest.raises(MirrorError, match=r"(?i)timed? ?out|timeout|cannot be read"):
        archive.prepare(ROW, config=config)
    assert time.monotonic() - began < 15
    assert cached_packages() == []


def test_a_download_that_apt_itself_does_not_give_up_is_ended(repository, server, config, monkeypatch):
    repository.kernel("bookworm", NEW)
    repository.publish()
    server.stall = ".deb"
    monkeypatch.setattr(apt, "TIMEOUT", 60)
    monkeypatch.setattr(apt, "STALL_SECONDS", 1.0)
    with pytest.raises(MirrorError, match="no byte in 1 s"):
        archive.prepare(ROW, config=config)
    assert cached_packages() == []


def test_a_package_larger_than_promised_is_stopped_on_its_way(repository, server, config, monkeypatch):
    big = os.urandom(1 << 20)
    repository.kernel("bookworm", NEW, headers=False, extra={f"./lib/modules/{NEW}/x": big}, Size="1000")
    repository.publish()
    server.stall = ".deb"
    monkeypatch.setattr(apt, "TIMEOUT", 60)
    with pytest.raises(ArchiveError, match=r"larger than the index says \(1000 bytes\)"):
        archive.prepare(ROW, config=config)
    assert cached_packages() == []


ELSEWHERE = """
import sys
from pathlib import Path
from kmt import archive
from kmt.config import Config
from kmt.matrix import Row
print(archive.prepare(Row("6.1", "6.1", suites=("bookworm",)), config=Config(Path(sys.argv[1]))).digest)
"""


def run_elsewhere(config, before=""):
    """Start ``archive.prepare`` in a process of its own."""
    argv = [sys.executable, "-c", before + ELSEWHERE, str(config.root)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_runs_at_once_fetch_everything_once(repository, server, config):
    repository.kernel("bookworm", NEW)
    repository.publish()
    runs = [run_elsewhere(config) for _ in range(3)]
    said = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert len(server.packages_asked()) == 3
    assert archive.describe(ROW, config=config).cached


def test_rows_side_by_side_each_with_its_own_outcome(repository, config):
    repository.kernel("bookworm", NEW)
    repository.kernel("bookworm", "6.12.9+deb12-cloud-amd64")
    repository.publish()
    rows = [ROW, Row("6.12", "6.12", suites=("bookworm",)), Row("6.6", "6.6", suites=("bookworm",))]
    found = archive.prepare_all(rows, config=config)
    assert [type(k).__name__ for k in found.values()] == ["Kernel", "Kernel", "UnavailableError"]
    assert set(json.loads(lock.location(config).read_text())["kernels"]) == {"6.1", "6.12"}


def test_a_run_that_is_killed_in_the_middle_leaves_nothing_half_made(repository, server, config):
    repository.kernel("bookworm", NEW)
    repository.publish()
    server.stall = "linux-headers"
    run = run_elsewhere(config)
    until = time.monotonic() + 30
    while not any("linux-headers" in path for path in server.asked) and time.monotonic() < until:
        time.sleep(0.05)
    run.kill()
    run.communicate()
    server.stall = ""
    (left,) = cached_packages()
    assert left.startswith(".fetch-")
    yesterday = time.time() - 100_000
    os.utime(paths.cache("packages") / left, (yesterday, yesterday))
    assert archive.prepare(ROW, config=config).release == NEW
    assert len(cached_packages()) == 3
    assert left not in cached_packages()


def test_a_disk_that_is_too_small_says_how_much_is_needed_and_where(repository, config):
    repository.kernel("bookworm", NEW, headers=False, Installed_Size=str(10**12))
    repository.publish()
    with pytest.raises(ArchiveError, match=r"no space left in .*1024000000\.0 MB needed, .* free") as caught:
        archive.prepare(ROW, config=config)
    assert str(paths.cache("packages")) in str(caught.value)
    assert "KMT_CACHE" in caught.value.hint
    assert cached_packages() == []


def test_a_disk_that_fills_while_unpacking_leaves_nothing(repository, config):
    big = bytes(8 << 20)
    repository.kernel("bookworm", NEW, headers=False, extra={f"./lib/modules/{NEW}/big": big})
    repository.publish()
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, {resource.RLIM_INFINITY}))"
    run = run_elsewhere(config, limit)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "ArchiveError: no space left in" in err
    assert list(paths.cache("kernels").iterdir()) == []
    assert archive.prepare(ROW, config=config).release == NEW


def test_an_archive_with_nothing_for_this_architecture(repository, config):
    repository.kernel("bookworm", NEW.replace("amd64", "arm64"), arch="arm64", headers=False)
    repository.publish(arch="arm64")
    with pytest.raises(UnavailableError, match="has nothing for amd64"):
        archive.prepare(ROW, config=config)


@pytest.mark.parametrize(
    ("vmlinuz", "said"),
    [(b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(5000), "arm64"), (b"#!/bin/sh\n" + bytes(5000), "no bzImage")],
)
def test_a_package_whose_image_cannot_be_booted_is_refused(repository, config, vmlinuz, said):
    repository.kernel("bookworm", NEW, headers=False, vmlinuz=vmlinuz)
    repository.publish()
    with pytest.raises(ArchiveError, match=said):
        archive.prepare(ROW, config=config)
    assert list(paths.cache("kernels").iterdir()) == []
    assert lock.read(lock.location(config)) == {}


def test_a_package_without_a_kernel_is_refused(repository, config):
    repository.add("bookworm", f"linux-image-{NEW}", depends="kmod")
    repository.publish()
    with pytest.raises(ArchiveError, match="hold no image"):
        archive.prepare(ROW, config=config)


def test_members_that_lead_out_of_a_package_are_left_there(tmp_path, repository, config):
    outside = tmp_path / "outside"
    outside.mkdir()
    headers = f"./usr/src/linux-headers-{NEW}"
    evil = {
        f"{headers}/abs": str(outside),
        f"{headers}/abs/by-link": b"x",
        f"{headers}/../../../../by-dots": b"x",
        "../by-start": b"x",
        f"{outside}/by-root": b"x",
        f"{headers}/up": "../../../..",
        f"{headers}/good": "abs",
    }
    repository.kernel("bookworm", NEW, headers=False, extra=evil)
    repository.publish()
    kernel = archive.prepare(ROW, config=config)
    assert list(outside.iterdir()) == []
    assert not list((tmp_path / "cache").rglob("by-dots"))
    assert not list((tmp_path / "cache").rglob("by-start"))
    links = [p for p in kernel.vmlinuz.parents[1].rglob("*") if p.is_symlink()]
    assert [p.name for p in links] == ["good"]


def test_a_chain_of_links_that_leads_out_is_refused(tmp_path, repository, config):
    headers = f"./usr/src/linux-headers-{NEW}"
    chain = {f"{headers}/top": "../../..", f"{headers}/out": "top/../..", f"{headers}/out/by-chain": b"x"}
    repository.kernel("bookworm", NEW, headers=False, extra=chain)
    repository.publish()
    with pytest.raises(ArchiveError, match="leads out of its package"):
        archive.prepare(ROW, config=config)
    assert not list(tmp_path.rglob("by-chain"))


def test_a_package_that_unpacks_to_too_much_is_refused(repository, config, monkeypatch):
    monkeypatch.setattr(unpack, "LIMIT", 1 << 20)
    repository.kernel("bookworm", NEW, headers=False, extra={f"./lib/modules/{NEW}/zeros": bytes(2 << 20)})
    repository.publish()
    with pytest.raises(ArchiveError, match=r"unpacks to more than 1\.0 MB"):
        archive.prepare(ROW, config=config)
    assert list(paths.cache("kernels").iterdir()) == []


def test_a_package_that_is_none_is_refused(repository, config):
    path = repository.kernel("bookworm", NEW, headers=False)
    path.write_bytes(deb("x", "1", "amd64", {})[:150])
    (paragraph,) = repository.suites["bookworm"].values()
    paragraph |= {"Size": str(path.stat().st_size), "SHA256": apt.digest_of(path)}
    repository.publish()
    with pytest.raises(ArchiveError, match="cannot be unpacked"):
        archive.prepare(ROW, config=config)


def test_packages_by_name_are_fetched_once(repository, server, config):
    repository.add("trixie", "busybox-static", "1:1.37-6", members={"./bin/busybox": b"x"})
    repository.publish()
    (first,) = archive.fetch_packages("trixie", ["busybox-static"])
    assert first.read_bytes() == next(repository.root.rglob("*.deb")).read_bytes()
    server.close()
    assert archive.fetch_packages("trixie", ["busybox-static"]) == [first]


def test_packages_by_name_survive_an_index_of_last_week(repository, config):
    repository.add("trixie", "busybox-static", "1:1.37-6")
    repository.publish()
    archive.fetch_packages("trixie", ["busybox-static"])
    repository.remove("trixie", "busybox")
    repository.add("trixie", "busybox-static", "1:1.38-1")
    repository.publish()
    forget("packages")
    (found,) = archive.fetch_packages("trixie", ["busybox-static"])
    assert "1.38-1" in found.name
    with pytest.raises(UnavailableError, match="has no nonsense"):
        archive.fetch_packages("trixie", ["busybox-static", "nonsense"])
