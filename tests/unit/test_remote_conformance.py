"""The client for the TUF project's conformance suite, against a real repository that a web server shows.

One case after the other of what that suite and the specification ask for: the sequence of requests, rotation of keys,
thresholds, kinds of keys, expiry, roll-back and fast-forward, mixed answers, endless data, delegations, files.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf_repository import Answer, Repository, of, served, tampered
from tuf_server import signer

from harness.remote.conformance import main
from harness.remote.tuf import MAX_ROOT, MAX_ROOTS

PAST = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
TOP = ("root", "timestamp", "snapshot", "targets")


class Client:
    """A client under test and the repository that it sees; ``answer`` may be replaced."""

    def __init__(self, room: Path, repository: Repository) -> None:
        self.metadata, self.targets, self.root = room / "metadata", room / "targets", room / "root.json"
        self.repository = repository
        self.answer: Answer = of(repository)
        self.asked: list[str] = []
        self.root.write_bytes(repository.metadata("1.root.json"))
        assert main(["--metadata-dir", str(self.metadata), "init", str(self.root)]) == 0

    def run(self, *words: str, url: str | None = None) -> int:
        with served(lambda path: self.answer(path)) as (here, asked):
            base = url or here
            status = main(["--metadata-dir", str(self.metadata), "--metadata-url", f"{base}/metadata", *words])
            self.asked = [path.removeprefix("metadata/") for path in asked]
        return status

    def refresh(self) -> int:
        return self.run("refresh")

    def download(self, name: str) -> int:
        with served(lambda path: self.answer(path)) as (url, asked):
            status = main(
                ["--metadata-dir", str(self.metadata), "--metadata-url", f"{url}/metadata", "--target-name", name,
                 "--target-base-url", f"{url}/targets", "--target-dir", str(self.targets), "download"]
            )  # fmt: skip
            self.asked = [path.removeprefix("metadata/") for path in asked]
        return status

    def versions(self) -> tuple[int | None, ...]:
        """Of the four top-level roles, as kept."""
        found: list[int | None] = []
        for role in TOP:
            path = self.metadata / f"{role}.json"
            found.append(json.loads(path.read_bytes())["signed"]["version"] if path.exists() else None)
        return tuple(found)

    def files(self) -> list[bytes]:
        """The content of what has been downloaded."""
        return [path.read_bytes() for path in self.targets.rglob("*") if path.is_file()]


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path, Repository())


def test_first_and_second_refresh(client: Client) -> None:
    assert client.refresh() == 0
    assert client.asked == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert client.versions() == (1, 1, 1, 1)
    assert client.refresh() == 0
    assert client.asked == ["2.root.json", "timestamp.json"]
    client.repository.publish()
    client.repository.publish_root()
    assert client.refresh() == 0
    assert client.asked == ["2.root.json", "3.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
    assert client.versions() == (2, 2, 2, 2)


def test_without_consistent_snapshots(tmp_path: Path) -> None:
    client = Client(tmp_path, Repository(consistent=False))
    client.repository.add_file("a/b", b"content")
    client.repository.publish()
    assert client.download("a/b") == 0
    assert client.asked == ["2.root.json", "timestamp.json", "snapshot.json", "targets.json", "targets/a/b"]
    assert client.files() == [b"content"]


def test_as_a_command(client: Client, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.remote.conformance", "--metadata-dir", str(tmp_path / "other")]
    with served(client.answer) as (url, _):
        for words, status in (
            (["--metadata-url", f"{url}/metadata", "refresh"], 1),
            (["init", str(client.root)], 0),
            (["--metadata-url", f"{url}/metadata", "refresh"], 0),
        ):
            done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
            assert done.returncode == status, done.stderr
            assert ("init comes first" in done.stderr) == bool(status)


def test_words_that_are_missing(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["refresh"], ["--metadata-url", "http://127.0.0.1:1", "download"], []):
        with pytest.raises(SystemExit):
            main(["--metadata-dir", str(client.metadata), *words])


@pytest.mark.parametrize("spoil", [b"", b"[]", b"{}", None])
def test_a_root_that_cannot_be_trusted(client: Client, tmp_path: Path, spoil: bytes | None) -> None:
    """Neither accepted nor followed by a request."""
    unsigned = tampered(client.repository.metadata("1.root.json"), lambda signed: signed.update(version=7))
    client.root.write_bytes(unsigned if spoil is None else spoil)
    client.metadata = tmp_path / "fresh"
    assert main(["--metadata-dir", str(client.metadata), "init", str(client.root)]) == 1
    assert (client.refresh(), client.asked) == (1, [])
    client.metadata.mkdir()
    (client.metadata / "root.json").write_bytes(client.root.read_bytes())
    assert (client.refresh(), client.asked) == (1, [])


@cache
def keys_of(kind: str) -> list[CryptoSigner]:
    return [getattr(CryptoSigner, f"generate_{kind}")() for _ in range(2)]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_kinds_of_keys(client: Client, kind: str) -> None:
    """Each for every role, with a threshold of two; rsa keys sign by PSS."""
    for role in TOP[1:]:
        client.repository.set_keys(role, keys_of(kind), 2)
    client.repository.rotate_root(keys_of(kind), 2)
    client.repository.publish()
    assert client.refresh() == 0
    assert client.versions() == (2, 2, 2, 2)
    assert {key["scheme"] for key in json.loads(client.root.read_bytes())["signed"]["keys"].values()} == {"ed25519"}
    if kind == "rsa":
        assert keys_of(kind)[0].public_key.scheme == "rsassa-pss-sha256"
    client.repository.signers["root"] = keys_of(kind)[:1]
    client.repository.publish_root()
    assert client.refresh() == 1
    assert client.versions() == (2, 2, 2, 2)


Step = tuple[str, int, str]
"""A root: its keys, its threshold, and who signs it; each key is a letter."""
ROTATIONS: dict[str, tuple[list[Step], bool]] = {
    "one key by another": ([("a", 1, "a"), ("b", 1, "ab"), ("b", 1, "b")], True),
    "with signatures of strangers": ([("a", 1, "xay"), ("b", 1, "xbay"), ("b", 1, "xby")], True),
    "any three of five": ([("abcde", 3, "ace"), ("abcde", 3, "aeb"), ("abcde", 3, "bcd")], True),
    "one of five": ([("abcde", 3, "ace"), ("abdef", 3, "aeb")], True),
    "all of five": ([("abcde", 3, "ace"), ("fghij", 3, "acefgh"), ("fghij", 3, "hij")], True),
    "the threshold rises": ([("abc", 1, "a"), ("abc", 2, "ab")], True),
    "the threshold falls": ([("abc", 2, "ab"), ("abc", 1, "ab"), ("abc", 1, "c")], True),
    "a key more": ([("a", 1, "a"), ("ab", 2, "ab")], True),
    "not signed by the old key": ([("a", 1, "a"), ("b", 1, "bxy")], False),
    "not signed by the new key": ([("a", 1, "a"), ("b", 1, "axy")], False),
    "too few of the new": ([("abcde", 3, "ace"), ("abdef", 3, "ace")], False),
    "too few of the old": ([("abcde", 3, "ace"), ("abdef", 3, "aef")], False),
    "the risen threshold is not reached": ([("abc", 1, "a"), ("abc", 2, "b")], False),
    "the old threshold is not reached": ([("abc", 2, "ab"), ("abc", 1, "a")], False),
    "in the middle of a chain": ([("a", 1, "a"), ("b", 1, "ab"), ("c", 1, "c")], False),
}


@pytest.mark.parametrize(("steps", "good"), ROTATIONS.values(), ids=ROTATIONS)
def test_rotation_of_root_keys(tmp_path: Path, steps: list[Step], good: bool) -> None:
    repository = Repository()
    repository.root.version = 0
    for keys, threshold, signers in steps:
        repository.set_keys("root", [signer(letter) for letter in keys], threshold)
        repository.signers["root"] = []
        repository.publish_root([signer(letter) for letter in signers])
    client = Client(tmp_path, repository)
    assert client.refresh() == (0 if good else 1)
    last = len(steps) - (not good)
    assert (client.metadata / "root.json").read_bytes() == repository.metadata(f"{last}.root.json")


@pytest.mark.parametrize("role", TOP[1:])
def test_rotation_of_other_keys_and_their_thresholds(client: Client, role: str) -> None:
    assert client.refresh() == 0
    pool = [signer(letter) for letter in "abc"]
    for number, (keys, signers, status) in enumerate(
        [("ab", "ab", 0), ("ab", "a", 1), ("bc", "ab", 1), ("bc", "cb", 0)]
    ):
        client.repository.set_keys(role, [pool["abc".index(letter)] for letter in keys], 2)
        client.repository.publish_root()
        client.repository.signers[role] = [pool["abc".index(letter)] for letter in signers]
        client.repository.publish()
        assert client.refresh() == status, number
        assert client.versions()[0] == client.repository.root.version


def test_one_root_key_under_two_ids_counts_once(client: Client) -> None:
    root = client.repository.root
    (keyid,) = root.roles["root"].keyids
    alias = signer("alias").public_key
    root.keys["alias"] = type(alias)("alias", alias.keytype, alias.scheme, dict(root.keys[keyid].keyval))
    root.roles["root"].keyids.append("alias")
    root.roles["root"].threshold = 2
    client.repository.publish_root()
    raw = json.loads(client.repository.metadata("2.root.json"))
    raw["signatures"].append({"keyid": "alias", "sig": raw["signatures"][0]["sig"]})
    client.repository.files["metadata/2.root.json"] = json.dumps(raw).encode()
    assert client.refresh() == 1
    assert client.versions() == (1, None, None, None)


def test_members_that_nobody_knows(client: Client) -> None:
    root = client.repository.root
    root.unrecognized_fields["custom-field"] = "value"
    next(iter(root.keys.values())).unrecognized_fields["more"] = {"a": [1, None]}
    root.roles["root"].unrecognized_fields["another"] = "value"
    client.repository.publish_root()
    assert client.refresh() == 0
    assert client.versions()[0] == 2


def test_an_expired_root(client: Client) -> None:
    """The last one ends the refresh and is kept all the same; one on the way to a newer does no harm."""
    good = client.repository.root.expires
    client.repository.root.expires = PAST
    client.repository.publish_root()
    assert client.refresh() == 1
    assert client.versions() == (2, None, None, None)
    assert client.asked == ["2.root.json", "3.root.json"]
    client.repository.root.expires = good
    client.repository.publish_root()
    assert client.refresh() == 0
    assert client.versions() == (3, 1, 1, 1)


@pytest.mark.parametrize("role", TOP[1:])
def test_other_expired_metadata(client: Client, role: str) -> None:
    assert client.refresh() == 0
    getattr(client.repository, role).expires = PAST
    client.repository.publish()
    assert client.refresh() == 1
    getattr(client.repository, role).expires = client.repository.root.expires
    client.repository.publish()
    assert client.refresh() == 0
    assert client.versions() == (1, 3, 3, 3)


@pytest.mark.parametrize("role", TOP[1:])
def test_roll_back(client: Client, role: str) -> None:
    client.repository.publish()
    assert client.refresh() == 0
    signed = getattr(client.repository, role)
    signed.version -= 2
    if role == "timestamp":
        client.repository.publish_timestamp()
    elif role == "snapshot":
        client.repository.publish_snapshot()
    else:
        client.repository.publish()
    assert client.refresh() == 1
    assert client.versions()[2 if role == "snapshot" else -1] == 2


def test_an_old_timestamp_is_no_error_and_changes_nothing(client: Client) -> None:
    old = client.repository.metadata("timestamp.json")
    client.repository.publish()
    assert client.refresh() == 0
    client.repository.files["metadata/timestamp.json"] = old
    assert client.refresh() == 1
    assert client.versions() == (1, 2, 2, 2)


def test_a_snapshot_that_forgets_a_role(client: Client) -> None:
    client.repository.delegate("targets", "one", ["one/*"])
    client.repository.publish()
    assert client.refresh() == 0
    del client.repository.snapshot.meta["one.json"]
    del client.repository.roles["one"]
    client.repository.publish()
    assert client.refresh() == 1
    assert client.versions()[2] == 2


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_recovery_from_fast_forward(client: Client, role: str) -> None:
    """New keys in a new root, and the versions may begin again."""
    getattr(client.repository, role).version = 9_999_999
    client.repository.publish()
    assert client.refresh() == 0
    getattr(client.repository, role).version = 1
    client.repository.publish()
    assert client.refresh() == 1
    for each in ("timestamp", "snapshot"):
        client.repository.set_keys(each, [signer(f"new-{each}")])
    client.repository.publish_root()
    client.repository.publish()
    assert client.refresh() == 0
    assert client.versions()[1:3] == (client.repository.timestamp.version, client.repository.snapshot.version)


@pytest.mark.parametrize("hashes", [False, True])
@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_answers_of_two_days_mixed(tmp_path: Path, role: str, hashes: bool) -> None:
    client = Client(tmp_path, Repository(hashes=hashes))
    old = client.repository.metadata(f"1.{role}.json")
    client.repository.publish()
    client.repository.files[f"metadata/2.{role}.json"] = old
    assert client.refresh() == 1
    assert client.versions()[TOP.index(role)] is None


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_bytes_that_are_not_those_of_the_hash(tmp_path: Path, role: str) -> None:
    """Validly signed, of the right version, and still others."""
    client = Client(tmp_path, Repository(hashes=True))
    signed = getattr(client.repository, role)
    signed.unrecognized_fields["x"] = "other"
    raw = client.repository.sign(signed, client.repository.signers[role])
    client.repository.files[f"metadata/1.{role}.json"] = raw
    assert client.refresh() == 1


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
@pytest.mark.parametrize("kind", ["junk", "empty", "forged", "endless", "500", "cut"])
def test_metadata_that_are_none(client: Client, name: str, kind: str) -> None:
    honest = of(client.repository)
    client.repository.publish_root()
    good = client.repository.metadata(name)

    def endless() -> Iterator[bytes]:
        yield from itertools.repeat(b" " * 65536)

    spoilt = {
        "junk": b"{]",
        "empty": b"",
        "forged": tampered(good, lambda signed: signed.update(x=1)),
        "endless": endless(),
        "500": 500,
        "cut": good[:-20],
    }
    client.answer = lambda path: spoilt[kind] if path == f"metadata/{name}" else honest(path)
    before = client.versions()
    assert client.refresh() == 1
    assert client.versions()[0] == (1 if name == "2.root.json" else 2)
    assert client.versions()[3] == before[3]
    client.answer = honest
    assert client.refresh() == 0


def test_a_root_of_just_the_size_and_one_byte_more(client: Client) -> None:
    client.repository.root.unrecognized_fields["fill"] = ""
    client.repository.root.version = 2
    size = len(client.repository.sign(client.repository.root, client.repository.signers["root"]))
    client.repository.root.version = 1
    client.repository.root.unrecognized_fields["fill"] = "x" * (MAX_ROOT - size)
    client.repository.publish_root()
    assert len(client.repository.metadata("2.root.json")) == MAX_ROOT
    assert client.refresh() == 0
    client.repository.root.unrecognized_fields["fill"] += "x"
    client.repository.publish_root()
    assert client.refresh() == 1
    assert client.versions()[0] == 2


@pytest.mark.parametrize("more", [0, 1])
def test_as_many_roots_as_are_followed_and_one_more(client: Client, more: int) -> None:
    for _ in range(MAX_ROOTS + more):
        client.repository.publish_root()
    assert client.refresh() == more
    assert json.loads((client.metadata / "root.json").read_bytes())["signed"]["version"] == MAX_ROOTS + 1


@pytest.mark.parametrize("version", [1, 3])
def test_a_root_under_the_name_of_another(client: Client, version: int) -> None:
    client.repository.root.version = version - 1
    client.repository.publish_root()
    if version != 2:
        client.repository.files["metadata/2.root.json"] = client.repository.metadata(f"{version}.root.json")
    assert client.refresh() == 1
    assert client.versions() == (1, None, None, None)


def test_nobody_answers(client: Client) -> None:
    assert client.run("refresh", url="http://127.0.0.1:1") == 1


def test_download(client: Client) -> None:
    """Fetched once; fetched again when it has changed, into the same file."""
    for number in range(2):
        client.repository.add_file("a/b/c.txt", b"content %d" % number)
        client.repository.publish()
        assert client.download("a/b/c.txt") == 0
        assert client.asked[-1].startswith("targets/a/b/")
        assert client.files() == [b"content %d" % number]
        assert client.download("a/b/c.txt") == 0
        assert not any(path.startswith("targets/") for path in client.asked)


def test_a_name_that_nobody_lists(client: Client) -> None:
    assert client.download("none") == 1
    assert client.versions() == (1, 1, 1, 1)
    assert client.files() == []


@pytest.mark.parametrize("name", ["../../outside", "/etc/x", "a b/ä%2F?", "..", "a//b", "signed\\x"])
def test_odd_names_stay_in_the_directory(client: Client, tmp_path: Path, name: str) -> None:
    client.repository.add_file(name, b"odd")
    client.repository.publish()
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    client.answer = lambda path: b"odd" if path.startswith("targets/") else of(client.repository)(path)
    client.download(name)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in after - before if client.metadata not in path.parents} <= set(client.targets.rglob("*"))


@pytest.mark.parametrize("raw", [b"other bytes", b"content!", b"conten", b"", None])
def test_a_file_that_is_not_as_listed(client: Client, raw: bytes | None) -> None:
    client.repository.add_file("file", b"content")
    client.repository.publish()
    sent = itertools.repeat(b"content") if raw is None else raw
    client.answer = lambda path: sent if path.startswith("targets/") else of(client.repository)(path)
    assert client.download("file") == 1
    assert b"content" not in client.files()
    assert raw not in client.files()


def test_delegations(client: Client) -> None:
    """In order, depth first; a terminating one ends the search; circles do no harm."""
    repository = client.repository
    repository.delegate("targets", "one", ["one/*", "both/*"], terminating=True)
    repository.delegate("targets", "two", ["both/*", "two/*"])
    repository.delegate("two", "deep", ["two/*"])
    repository.delegate("deep", "two", ["two/*"])
    repository.add_file("one/a", b"1", "one")
    repository.add_file("both/a", b"2", "two")
    repository.add_file("two/a", b"3", "deep")
    repository.add_file("elsewhere/a", b"4", "deep")
    repository.publish()
    assert client.download("one/a") == 0
    assert client.asked[-2:-1] == ["1.one.json"]
    assert client.download("two/a") == 0
    assert client.asked[-3:-1] == ["1.two.json", "1.deep.json"]
    assert client.download("both/a") == 1, "the terminating role does not list it"
    assert client.download("elsewhere/a") == 1, "its role has no right to that path"
    assert client.download("two/none") == 1


@pytest.mark.parametrize("fault", ["wrong key", "expired", "not in snapshot", "older", "junk"])
def test_delegated_metadata_that_are_wrong(client: Client, fault: str) -> None:
    repository = client.repository
    one = repository.delegate("targets", "one", ["*"])
    repository.add_file("a", b"1", "one")
    if fault == "wrong key":
        repository.signers["one"] = [signer("evil")]
    if fault == "expired":
        one.expires = PAST
    repository.publish()
    if fault == "not in snapshot":
        del repository.snapshot.meta["one.json"]
        repository.publish_snapshot()
    if fault == "older":
        repository.snapshot.meta["one.json"].version = 2
        repository.files["metadata/2.one.json"] = repository.metadata("1.one.json")
        repository.publish_snapshot()
    if fault == "junk":
        repository.files["metadata/1.one.json"] = b"{}"
    assert client.download("a") == 1
    assert client.files() == []
    assert client.versions()[0] == 1
