"""The remote state against an honest server that rotates, expires and changes, and a hostile one in between.

The machine's server signs real metadata with python-tuf; the model is what the server serves. Whatever is refused
must leave the state as it was, to the last byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import config_paths, contents, key_names, versions
from tuf_server import EARLIER, LATER, NOW, Server, entry, instant, root_object, sign, targets_object

from harness.remote.errors import (
    ExpiredError,
    MetadataError,
    PathError,
    RemoteError,
    RollbackError,
    RootChainError,
    TargetError,
    ThresholdError,
    TooLargeError,
)
from harness.remote.paths import parse
from harness.remote.state import ApplyState, ApplyStatus, State, Update
from harness.remote.tuf import MAX_ROOT, MAX_ROOTS, MAX_TARGETS

PATHS = ["datadog/2/TESTING1/a/b", "datadog/2/TESTING1/c/d", "employee/TESTING2/a/b", "datadog/0/ASM_FEATURES/x/y"]
statuses = st.builds(ApplyStatus, st.sampled_from(ApplyState), st.text(max_size=4))


def snapshot(state: State) -> tuple[Any, ...]:
    """All that a state says, copied."""
    root = None if state.trusted is None else (state.trusted.raw, repr(state.trusted.root.to_dict()))
    return root, state.root_version, state.targets_version, state.opaque, tuple(state.configs.items())


class StateMachine(RuleBasedStateMachine):
    """``server`` is honest; ``state`` is what the client under test made of its answers."""

    @initialize(root=key_names("root"), signers=key_names("targets"))
    def start(self, root: tuple[str, ...], signers: tuple[str, ...]) -> None:
        self.server = Server(root, signers)
        self.state = State.verified(self.server.roots[0])
        self.root_expired = False
        self.sent: list[Update] = []
        """Every honest answer that was taken."""

    # What an honest server does.

    @rule(path=st.sampled_from(PATHS), raw=contents, version=versions)
    def put(self, path: str, raw: bytes, version: int) -> None:
        self.server.files[path] = (raw, version)
        self.server.targets_version += 1

    @rule(path=st.sampled_from(PATHS))
    def remove(self, path: str) -> None:
        self.server.files.pop(path, None)
        self.server.targets_version += 1

    @rule(root=key_names("root"), thresholds=st.tuples(st.integers(1, 2), st.integers(1, 2)), expired=st.booleans())
    def rotate_root(self, root: tuple[str, ...], thresholds: tuple[int, int], expired: bool) -> None:
        thresholds = (min(thresholds[0], len(root)), min(thresholds[1], len(self.server.targets_keys)))
        self.server.rotate(root=root, thresholds=thresholds, expires=EARLIER if expired else LATER)
        self.root_expired = expired

    @rule(signers=key_names("targets"))
    def rotate_targets(self, signers: tuple[str, ...]) -> None:
        """With other keys the versions may start again: recovery from a fast-forward."""
        changed = set(signers) != set(self.server.targets_keys)
        self.server.rotate(targets=signers, thresholds=(self.server.thresholds[0], 1))
        self.root_expired = False
        if changed:
            self.server.targets_version = 1

    @rule(opaque=st.none() | st.binary(max_size=8), both=st.booleans())
    def other_customs(self, opaque: bytes | None, both: bool) -> None:
        self.server.opaque = opaque
        self.server.algorithms = ("sha256", "sha512") if both else ("sha512",)

    # What the client does.

    @rule(path=st.sampled_from([*PATHS, "unknown"]), status=statuses)
    def apply_status(self, path: str, status: ApplyStatus) -> None:
        before = self.state
        self.state = before.with_statuses({path: status})
        if path in before.configs:
            assert self.state.configs[path] == before.configs[path]._replace(status=status)
        assert {**self.state.configs, path: None} == {**before.configs, path: None}

    @rule(data=st.data())
    def poll(self, data: st.DataObject) -> None:
        update = self.server.answer(self.state)
        if self.root_expired:
            self.refused(update, ExpiredError)
            assert self.state.apply(Update(), now=NOW) == (self.state, frozenset())
            return
        sent = data.draw(st.permutations([*update.roots, *self.server.roots[: self.state.root_version]]))
        got = self.state.apply(replace(update, roots=tuple(sent)), now=NOW)
        assert got == self.state.apply(update, now=NOW)
        self.catch_up()

    @rule()
    def poll_in_parts(self) -> None:
        """The roots of one update sent over several give the state that one would have given."""
        update = self.server.answer(self.state)
        assume(not self.root_expired and len(update.roots) > 1)
        whole = self.state.apply(update, now=NOW).state
        anyone = sign(self.server.targets(), [f"targets-{n}" for n in range(4)])
        state = self.state
        for root in update.roots:
            try:
                state = state.apply(replace(update, roots=(root,), targets=anyone), now=NOW).state
            except (ExpiredError, RollbackError):
                # At the time of this root the server had other targets, or the root was never one to stop at.
                return
        assert snapshot(state)[1:] == snapshot(whole)[1:]

    # What a hostile one sends.

    @rule(data=st.data())
    def hostile(self, data: st.DataObject) -> None:
        if not self.root_expired:
            name = data.draw(st.sampled_from(sorted(ATTACKS)))
            built = ATTACKS[name](self.server, self.state, data)
            if built is not None:
                self.refused(*built)

    @precondition(lambda self: self.sent and not self.root_expired)
    @rule(data=st.data())
    def replay_and_mix(self, data: st.DataObject) -> None:
        """Parts of earlier answers, of one or of several: refused, or nothing that goes back."""
        roots, targets, files, wanted = (data.draw(st.sampled_from(self.sent)) for _ in range(4))
        if data.draw(st.booleans()):
            targets = files = wanted = roots
        before = snapshot(self.state)
        update = Update(roots.roots, targets.targets, files.files, wanted.client_configs)
        try:
            got = self.state.apply(update, now=NOW).state
        except RemoteError:
            assert snapshot(self.state) == before
        else:
            assert got.root_version == self.state.root_version
            assert got.targets_version >= self.state.targets_version
            assert got.configs.keys() == set(wanted.client_configs)
            self.files_are_as_listed(got)

    @rule(data=st.data())
    def flip_a_byte(self, data: st.DataObject) -> None:
        """Anywhere in signed metadata: refused, or of no effect (a byte between tokens, an unneeded signature)."""
        update = self.server.answer(self.state)
        in_roots = bool(update.roots) and data.draw(st.booleans())
        raw = bytearray(update.roots[-1] if in_roots else update.targets)
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        changed = {"roots": (*update.roots[:-1], bytes(raw))} if in_roots else {"targets": bytes(raw)}
        before = snapshot(self.state)
        try:
            got = self.state.apply(replace(update, **changed), now=NOW)
        except RemoteError:
            assert snapshot(self.state) == before
        else:
            assert snapshot(got.state)[1:] == snapshot(self.state.apply(update, now=NOW).state)[1:]

    # What must hold.

    @invariant()
    def every_file_is_as_listed(self) -> None:
        self.files_are_as_listed(self.state)

    def files_are_as_listed(self, state: State) -> None:
        for config in state.configs.values():
            assert len(config.raw) == config.length
            assert config.hashes
            assert config.hashes == {name: hashlib.new(name, config.raw).hexdigest() for name in config.hashes}

    @invariant()
    def products_are_a_view_of_the_files(self) -> None:
        rooms = {config.product: self.state.of(config.product) for config in self.state.configs.values()}
        assert {path: c for room in rooms.values() for path, c in room.items()} == self.state.configs
        assert all(config.product == product for product, room in rooms.items() for config in room.values())
        assert self.state.of("NO_SUCH_PRODUCT") == {}

    def catch_up(self) -> None:
        """One honest update; then the same again."""
        before, answer = self.state, self.server.answer(self.state)
        self.state, products = before.apply(answer, now=NOW)
        self.sent.append(answer)
        assert products == self.changed_since(before)
        self.is_the_servers(before)
        again = self.state.apply(self.server.answer(self.state), now=NOW)
        assert again == (self.state, frozenset())

    def refused(self, update: Update, error: type[RemoteError]) -> None:
        before = snapshot(self.state)
        with pytest.raises(error) as raised:
            self.state.apply(update, now=NOW)
        assert type(raised.value) is error
        assert snapshot(self.state) == before

    def changed_since(self, before: State) -> set[str]:
        """Products with a file that is new, gone, of other bytes, or of which nothing listed tells that it is not."""
        changed = set()
        for path in before.configs.keys() | self.server.files.keys():
            old = before.configs.get(path)
            same = old is not None and self.server.files.get(path, (None,))[0] == old.raw
            if not same or (old is not None and old.hashes.keys().isdisjoint(self.server.algorithms)):
                changed.add(parse(path).product)
        return changed

    def is_the_servers(self, before: State) -> None:
        assert self.state.root_version == len(self.server.roots)
        assert self.state.targets_version == self.server.targets_version
        assert self.state.opaque == (before.opaque if self.server.opaque is None else self.server.opaque)
        assert self.state.configs.keys() == self.server.files.keys()
        for path, (raw, version) in self.server.files.items():
            config, old = self.state.configs[path], before.configs.get(path)
            assert (config.raw, config.version, config.length) == (raw, version, len(raw))
            assert config.hashes == entry(raw, version, self.server.algorithms)["hashes"]
            assert config[1:4] == parse(path)[2:]
            kept = old is not None and old.raw == raw and old.hashes.keys() & config.hashes.keys()
            assert config.status == (old.status if old is not None and kept else ApplyStatus())


Attack = Callable[[Server, State, st.DataObject], tuple[Update, type[RemoteError]] | None]
ATTACKS: dict[str, Attack] = {}


def attack(build: Attack) -> Attack:
    """Put a way to misbehave into the table. None: not possible in this situation."""
    ATTACKS[build.__name__] = build
    return build


def with_targets(server: Server, state: State, signed: dict[str, Any], keys: tuple[str, ...] | None = None) -> Update:
    return server.answer(state, targets=sign(signed, server.targets_keys if keys is None else keys))


def next_root(server: Server, state: State, **changes: Any) -> tuple[Update, dict[str, Any]]:
    """The honest answer, and the signed part of a root that would be next after it."""
    made: dict[str, Any] = {"root": server.root_keys, "targets": server.targets_keys}
    made |= {"thresholds": server.thresholds, "expires": LATER} | changes
    return server.answer(state), root_object(len(server.roots) + 1, **made)


@attack
def a_root_is_missing(server: Server, state: State, data: st.DataObject) -> Any:
    update = server.answer(state)
    if len(update.roots) < 2:
        return None
    gone = data.draw(st.integers(0, len(update.roots) - 2))
    return replace(update, roots=update.roots[:gone] + update.roots[gone + 1 :]), RootChainError


@attack
def two_roots_of_one_version(server: Server, state: State, _: st.DataObject) -> Any:
    update, signed = next_root(server, state)
    twins = (sign(signed, server.root_keys), sign(signed, [*server.root_keys, "another"]))
    return replace(update, roots=update.roots + twins), RootChainError


@attack
def a_root_signed_by_its_own_keys_only(server: Server, state: State, _: st.DataObject) -> Any:
    update, signed = next_root(server, state, root=("evil",), thresholds=(1, 1))
    return replace(update, roots=(*update.roots, sign(signed, ["evil"]))), ThresholdError


@attack
def a_root_signed_by_the_old_keys_only(server: Server, state: State, _: st.DataObject) -> Any:
    update, signed = next_root(server, state, root=("new",), thresholds=(1, 1))
    return replace(update, roots=(*update.roots, sign(signed, server.root_keys))), ThresholdError


@attack
def one_key_signs_twice(server: Server, state: State, _: st.DataObject) -> Any:
    update, signed = next_root(
        server, state, root=(*server.root_keys, "new"), thresholds=(len(server.root_keys) + 1, 1)
    )
    keys = [*server.root_keys, server.root_keys[0]]
    return replace(update, roots=(*update.roots, sign(signed, keys))), ThresholdError


@attack
def one_key_under_two_ids(server: Server, state: State, _: st.DataObject) -> Any:
    update, signed = next_root(server, state, thresholds=(len(server.root_keys) + 1, 1))
    first = signed["roles"]["root"]["keyids"][0]
    signed["keys"]["alias"] = dict(signed["keys"][first])
    signed["roles"]["root"]["keyids"].append("alias")
    whole = json.loads(sign(signed, server.root_keys))
    whole["signatures"].append({"keyid": "alias", "sig": whole["signatures"][0]["sig"]})
    return replace(update, roots=(*update.roots, json.dumps(whole).encode())), ThresholdError


@attack
def an_expired_last_root(server: Server, state: State, _: st.DataObject) -> Any:
    update, signed = next_root(server, state, expires=NOW)
    return replace(update, roots=(*update.roots, sign(signed, server.root_keys))), ExpiredError


@attack
def a_root_without_the_targets_role(server: Server, state: State, data: st.DataObject) -> Any:
    update, signed = next_root(server, state)
    del signed["roles"][data.draw(st.sampled_from(["targets", "root"]))]
    return replace(update, roots=(*update.roots, sign(signed, server.root_keys))), MetadataError


@attack
def something_that_is_no_root(server: Server, state: State, data: st.DataObject) -> Any:
    update = server.answer(state)
    junk = data.draw(
        st.sampled_from([b"", b"{", b"[]", b"\xff", b"{}", b'{"signed":{},"signatures":[]}', update.targets])
    )
    return replace(update, roots=(*update.roots, junk)), MetadataError


@attack
def too_much(server: Server, state: State, data: st.DataObject) -> Any:
    update = server.answer(state)
    return data.draw(
        st.sampled_from(
            [
                (replace(update, roots=(b" " * (MAX_ROOT + 1),)), TooLargeError),
                (replace(update, targets=b" " * (MAX_TARGETS + 1)), TooLargeError),
                (replace(update, roots=(server.roots[0],) * (MAX_ROOTS + 1)), TooLargeError),
            ]
        )
    )


@attack
def targets_by_the_wrong_key(server: Server, state: State, _: st.DataObject) -> Any:
    return with_targets(server, state, server.targets(), ("evil",)), ThresholdError


@attack
def targets_by_too_few(server: Server, state: State, _: st.DataObject) -> Any:
    some = server.targets_keys[: server.thresholds[1] - 1]
    return with_targets(server, state, server.targets(), (*some, *some, "evil")), ThresholdError


@attack
def targets_of_the_wrong_type(server: Server, state: State, _: st.DataObject) -> Any:
    return with_targets(server, state, server.targets() | {"_type": "snapshot"}), MetadataError


@attack
def expired_targets(server: Server, state: State, data: st.DataObject) -> Any:
    when = data.draw(st.sampled_from([NOW, EARLIER]))
    return with_targets(server, state, targets_object(server.targets_version + 1, {}, expires=when)), ExpiredError


@attack
def older_targets(server: Server, state: State, _: st.DataObject) -> Any:
    """Only where no root of this update changes the keys that sign targets: then it would be a recovery."""
    signers = [set(json.loads(root)["signed"]["roles"]["targets"]["keyids"]) for root in server.roots]
    if state.targets_version < 2 or any(those != signers[-1] for those in signers[state.root_version - 1 :]):
        return None
    return with_targets(server, state, server.targets() | {"version": state.targets_version - 1}), RollbackError


@attack
def malformed_targets(server: Server, state: State, data: st.DataObject) -> Any:
    broken: list[dict[str, Any]] = [
        {"version": -1}, {"version": True}, {"version": "1"}, {"expires": "2040-01-01"}, {"expires": None},
        {"targets": []}, {"targets": {"p": {}}}, {"targets": {"p": 1}}, {"spec_version": "2.0.0"},
        {"targets": {"p": {"length": True, "hashes": {"sha256": "00"}}}},
        {"targets": {"p": {"length": 1, "hashes": {}}}},
    ]  # fmt: skip
    return with_targets(server, state, server.targets() | data.draw(st.sampled_from(broken))), MetadataError


@attack
def no_targets(server: Server, state: State, _: st.DataObject) -> Any:
    return Update(roots=(server.roots[0],)), MetadataError


def wanting(server: Server, state: State, path: str, item: dict[str, Any] | None, files: dict[str, bytes]) -> Update:
    """The honest answer and one more file in it, listed as ``item`` and sent as in ``files``."""
    signed = server.targets()
    signed["version"] += 1
    if item is not None:
        signed["targets"][path] = item
    honest = with_targets(server, state, signed)
    return replace(honest, files={**honest.files, **files}, client_configs=(*honest.client_configs, path))


@attack
def a_file_that_is_not_as_listed(server: Server, state: State, data: st.DataObject) -> Any:
    path, raw = "datadog/9/TESTING1/new/file", b"content"
    good = entry(raw, 1, server.algorithms)
    flipped = bytearray(raw)
    flipped[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    second = good["hashes"] | {"sha256": "0" * 64}
    cases: list[tuple[dict[str, Any] | None, dict[str, bytes]]] = [
        (good, {path: bytes(flipped)}), (good, {path: raw[:-1]}), (good, {path: raw + b"!"}), (good, {}),
        (None, {path: raw}), (good | {"length": 6}, {path: raw}), (good | {"hashes": second}, {path: raw}),
        (good | {"hashes": {**good["hashes"], "md5": "0" * 32}}, {path: raw}), (good | {"custom": {}}, {path: raw}),
        (good | {"custom": {"v": -1}}, {path: raw}), (good | {"custom": {"v": True}}, {path: raw}),
        (good | {"custom": {"v": 2**64}}, {path: raw}), ({k: v for k, v in good.items() if k != "custom"}, {path: raw}),
    ]  # fmt: skip
    return wanting(server, state, path, *data.draw(st.sampled_from(cases))), TargetError


@attack
def a_known_file_listed_falsely(server: Server, state: State, data: st.DataObject) -> Any:
    """The same bytes with another length, or with a second hash that does not fit: not taken on trust."""
    held = [path for path in state.configs if path in server.files and server.files[path][0] == state.configs[path].raw]
    if not held:
        return None
    path = data.draw(st.sampled_from(sorted(held)))
    old = state.configs[path]
    item = {"length": old.length, "hashes": dict(old.hashes), "custom": {"v": 1}}
    others = sorted({"sha256", "sha512"} - old.hashes.keys())
    wrong_hash: bool = data.draw(st.booleans())
    if others and wrong_hash:
        item["hashes"] = {**old.hashes, others[0]: "0" * 64}
    else:
        item["length"] = old.length + 1
    signed = server.targets()
    signed["targets"][path] = item
    return with_targets(server, state, signed), TargetError


@attack
def a_path_that_is_none(server: Server, state: State, data: st.DataObject) -> Any:
    path = data.draw(
        st.sampled_from(
            ["datadog/1/NO_SUCH_PRODUCT/a/b", "elsewhere/1/TESTING1/a/b", "datadog/x/TESTING1/a/b", "", "datadog"]
        )
    )
    return wanting(server, state, path, entry(b"", 1), {path: b""}), PathError


TestState = StateMachine.TestCase
TestState.settings = settings(max_examples=max(10, settings().max_examples // 2), stateful_step_count=12)


@pytest.mark.parametrize("name", sorted(ATTACKS))
@settings(max_examples=max(8, settings().max_examples // 5))
@given(data=st.data())
def test_each_attack_is_refused(name: str, data: st.DataObject) -> None:
    """On a client that holds files and has two roots to catch up with, or none."""
    server = Server(("root-0", "root-1"), ("targets-0", "targets-1"), (2, 2), targets_version=5)
    server.files = {PATHS[0]: (b"one", 1), PATHS[2]: (b"two", 2)}
    state = State.verified(server.roots[0])
    state = state.apply(server.answer(state), now=NOW).state
    if name == "a_root_is_missing" or data.draw(st.booleans()):
        server.rotate(root=("root-1", "root-2"))
        server.rotate(root=("root-2", "root-3"))
    built = ATTACKS[name](server, state, data)
    assert built is not None
    update, error = built
    before = snapshot(state)
    with pytest.raises(error) as raised:
        state.apply(update, now=NOW)
    assert type(raised.value) is error
    assert snapshot(state) == before
    assert state.apply(server.answer(state), now=NOW).state.root_version == len(server.roots)


no_expiries = st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["2040-01-01", "9999-12-31T23:59:60Z"])
expiries = st.one_of(
    st.just({}), st.fixed_dictionaries({"expires": st.sampled_from([NOW, EARLIER, LATER]).map(instant) | no_expiries})
)
"""The member of targets that says when they expire: missing, of use, or not."""


@pytest.mark.thorough
@given(st.dictionaries(config_paths(), st.tuples(contents, versions), max_size=4), expiries)
def test_unverified_ignores_signatures_and_dates_and_nothing_else(
    files: dict[str, tuple[bytes, int]], expiry: dict[str, Any]
) -> None:
    server = Server(files=files)
    server.rotate(root=("evil",), expires=EARLIER)
    signed = {name: value for name, value in server.targets().items() if name != "expires"} | expiry
    for targets in (sign(signed, ["evil"]), json.dumps({"signed": signed}).encode()):
        state = State.unverified()
        assert state.root_version == 1
        update = replace(server.answer(state, targets=targets), roots=(b"junk", server.roots[1]))
        got, products = state.apply(update, now=NOW)
        assert (got.root_version, got.targets_version) == (2, 1)
        assert {path: (c.raw, c.version) for path, c in got.configs.items()} == files
        assert products == {parse(path).product for path in files}
        for path in files:
            with pytest.raises(TargetError):
                state.apply(replace(update, files={**update.files, path: files[path][0] + b"!"}), now=NOW)
            with pytest.raises(TargetError):
                state.apply(replace(update, client_configs=(*files, path + "!")), now=NOW)
        with pytest.raises(MetadataError):
            state.apply(replace(update, roots=(b"junk",)), now=NOW)


FIELD = timezone(timedelta(hours=1))


@pytest.mark.thorough
@given(
    expires=st.datetimes(NOW.replace(tzinfo=None), datetime(2100, 1, 1), timezones=st.sampled_from([UTC, FIELD])),
    now=st.datetimes(NOW.replace(tzinfo=None), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
def test_an_expiry_is_an_instant_in_whatever_form(expires: datetime, now: datetime) -> None:
    server = Server()
    server.publish_root((), datetime(2200, 1, 1, tzinfo=UTC))
    state = State.verified(server.roots[0])
    signed = server.targets() | {"expires": expires.isoformat()}
    update = server.answer(state, targets=sign(signed, server.targets_keys))
    if now < expires:
        assert state.apply(update, now=now).state.targets_version == 1
    else:
        with pytest.raises(ExpiredError):
            state.apply(update, now=now)


A, B = ("targets-0", "targets-1"), ("targets-2",)


@pytest.mark.parametrize(
    ("rotations", "recovers"),
    [
        ([], False),
        ([A], False),
        ([A[::-1]], False),
        ([B], True),
        ([A[:1]], True),
        ([B, B], True),
        ([A, B, B], True),
        ([B, A], True),
    ],
)
def test_older_targets_are_accepted_only_if_their_keys_have_changed(
    rotations: list[tuple[str, ...]], recovers: bool
) -> None:
    """Whether the roots come at once or one by one."""
    server = Server(targets_keys=A, targets_version=9)
    held = State.verified(server.roots[0])
    held = held.apply(server.answer(held), now=NOW).state
    state, server.targets_version = held, 1
    outcomes = set()
    for signers in rotations:
        server.rotate(targets=signers)
        try:
            state = state.apply(server.answer(state), now=NOW).state
            outcomes.add("accepted")
        except RollbackError:
            assert state == held
    try:
        assert held.apply(server.answer(held), now=NOW).state.targets_version == 1
        outcomes.add("accepted")
    except RollbackError:
        outcomes.add("refused")
    assert outcomes == ({"accepted"} if recovers else {"refused"})


def test_a_key_under_another_id_is_no_change_of_keys() -> None:
    server = Server(targets_version=9)
    state = State.verified(server.roots[0])
    state = state.apply(server.answer(state), now=NOW).state
    update, signed = next_root(server, state)
    (id,) = signed["roles"]["targets"]["keyids"]
    signed["keys"]["alias"] = signed["keys"][id]
    signed["roles"]["targets"]["keyids"] = ["alias"]
    update = replace(update, roots=(sign(signed, server.root_keys),))
    older = sign(server.targets() | {"version": 8}, server.targets_keys, ids={"targets-0": "alias"})
    with pytest.raises(RollbackError, match="targets 8 are older than targets 9"):
        state.apply(replace(update, targets=older), now=NOW)


few_files = st.dictionaries(
    st.sampled_from(PATHS), st.tuples(st.sampled_from([b"", b"one", b"two"]), st.integers(0, 1)), max_size=3
)
algorithms = st.sampled_from([("sha256",), ("sha256",), ("sha256", "sha512"), ("sha512",)])


@pytest.mark.thorough
@given(st.lists(st.tuples(few_files, algorithms, st.none() | st.binary(max_size=2)), min_size=2, max_size=5))
def test_any_history_of_files(
    history: list[tuple[dict[str, tuple[bytes, int]], tuple[str, ...], bytes | None]],
) -> None:
    machine = StateMachine()
    machine.start(root=("root-0",), signers=("targets-0",))
    for files, hashes, opaque in history:
        machine.server.files, machine.server.algorithms, machine.server.opaque = files, hashes, opaque
        machine.server.targets_version += 1
        machine.catch_up()
        machine.state = machine.state.with_statuses(
            {path: ApplyStatus(ApplyState.ERROR, f"of {machine.server.targets_version}") for path in files}
        )
