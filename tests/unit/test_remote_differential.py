"""Our verdict against python-tuf's own on the same bytes, and laws of what one byte or another division may change."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Signature
from strategies import key_names
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Root
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType
from tuf_server import LATER, NOW, Server, root_object, sign, signer, targets_object

from harness.remote import tuf
from harness.remote.errors import RemoteError, ThresholdError
from harness.remote.metadata import canonical_form
from harness.remote.state import State


@cache
def pool() -> dict[str, CryptoSigner]:
    """A few keys of each kind, made once."""
    made = {f"ed25519-{n}": signer(f"pool-{n}") for n in range(3)}
    made["ecdsa"] = CryptoSigner(generate_private_key(SECP256R1()))
    made["rsa"] = CryptoSigner(generate_rsa(public_exponent=65537, key_size=2048))
    return made


NAMES = ["ed25519-0", "ed25519-1", "ed25519-2", "ecdsa", "rsa"]
some = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
kinds = st.sampled_from(["good", "good", "good", "of other bytes", "of another key", "junk", "empty", "cut"])


def root_of(role: str, names: list[str], threshold: int, version: int = 1) -> dict[str, Any]:
    """A root in which ``role`` belongs to these keys, and the other of the two to one key more."""
    signed = root_object(version, ["root-0"], ["targets-0"], expires=LATER)
    signed["keys"] |= {pool()[name].public_key.keyid: pool()[name].public_key.to_dict() for name in names}
    signed["roles"][role] = {"keyids": [pool()[name].public_key.keyid for name in names], "threshold": threshold}
    return signed


def signature(name: str, kind: str, payload: bytes) -> str:
    """A signature by this key, or what pretends to be one."""
    if kind == "junk":
        return "zz" * 32
    if kind == "empty":
        return ""
    made = pool()["ed25519-0" if kind == "of another key" and name != "ed25519-0" else name]
    value = made.sign(payload + (b"!" if kind != "good" and kind != "cut" else b"")).signature
    return value[:-2] if kind == "cut" else value


def envelope(signed: dict[str, Any], signatures: dict[str, str]) -> bytes:
    listed = [{"keyid": keyid, "sig": value} for keyid, value in signatures.items()]
    return json.dumps({"signed": signed, "signatures": listed}).encode()


def library_accepts(root: dict[str, Any], role: str, payload: bytes, signatures: dict[str, str]) -> bool:
    """python-tuf's verdict."""
    try:
        made = Root.from_dict(json.loads(json.dumps(root)))
        made.verify_delegate(role, payload, {keyid: Signature(keyid, sig) for keyid, sig in signatures.items()})
    except UnsignedMetadataError:
        return False
    return True


@given(some, st.integers(1, 5), st.dictionaries(st.sampled_from(NAMES), kinds))
def test_targets_are_signed_enough_for_us_where_they_are_for_the_library(
    names: list[str], threshold: int, signers: dict[str, str]
) -> None:
    root = root_of("targets", names, threshold)
    signed = targets_object(1, {}, expires=LATER)
    payload = canonical_form(signed)
    signatures = {pool()[name].public_key.keyid: signature(name, kind, payload) for name, kind in signers.items()}
    trusted = tuf.load_root(sign(root, ["root-0"]))
    try:
        ours = bool(tuf.read_targets(envelope(signed, signatures), trusted, NOW))
    except ThresholdError:
        ours = False
    assert ours == library_accepts(root, "targets", payload, signatures)


@given(some, st.integers(1, 3), some, st.integers(1, 3), st.dictionaries(st.sampled_from(NAMES), kinds))
def test_a_new_root_too(old: list[str], before: int, new: list[str], after: int, signers: dict[str, str]) -> None:
    """Against its verdict by the keys of both roots, and against its client's set of trusted metadata."""
    first, second = root_of("root", old, min(before, len(old))), root_of("root", new, after, 2)
    payloads = canonical_form(first), canonical_form(second)
    by_old = {pool()[name].public_key.keyid: signature(name, "good", payloads[0]) for name in old}
    signatures = {pool()[name].public_key.keyid: signature(name, kind, payloads[1]) for name, kind in signers.items()}
    raws = envelope(first, by_old), envelope(second, signatures)
    try:
        ours = tuf.extend(tuf.load_root(raws[0]), raws[1:]).trusted.version == 2
    except ThresholdError:
        ours = False
    assert ours == all(library_accepts(root, "root", payloads[1], signatures) for root in (first, second))
    try:
        client = TrustedMetadataSet(raws[0], EnvelopeType.METADATA).update_root(raws[1]).version == 2
    except RepositoryError:
        client = False
    assert ours == client


@given(some, st.integers(1, 5), st.sets(st.sampled_from(NAMES)), st.data())
def test_one_key_under_many_ids_counts_once(
    names: list[str], threshold: int, signers: set[str], data: st.DataObject
) -> None:
    """Where the library counts it as often as it has ids: so against its verdict on the root without them."""
    plain = root_of("targets", names, threshold)
    signed = targets_object(1, {}, expires=LATER)
    payload = canonical_form(signed)
    signatures = {pool()[name].public_key.keyid: signature(name, "good", payload) for name in signers}
    root, many = json.loads(json.dumps(plain)), dict(signatures)
    for number, name in enumerate(data.draw(st.lists(st.sampled_from(names), max_size=3))):
        alias, keyid = f"alias-{number}", pool()[name].public_key.keyid
        root["keys"][alias] = dict(root["keys"][keyid])
        root["roles"]["targets"]["keyids"].insert(data.draw(st.integers(0, len(names))), alias)
        if keyid in signatures:
            many[alias] = signatures[keyid]
    trusted = tuf.load_root(sign(root, ["root-0"]))
    try:
        ours = bool(tuf.read_targets(envelope(signed, many), trusted, NOW))
    except ThresholdError:
        ours = False
    assert ours == library_accepts(plain, "targets", payload, signatures)


@given(st.lists(st.tuples(key_names("root"), key_names("targets")), min_size=1, max_size=5), st.data())
def test_a_chain_of_roots_may_come_in_any_parts(
    rotations: list[tuple[tuple[str, ...], tuple[str, ...]]], data: st.DataObject
) -> None:
    server = Server(files={"employee/TESTING1/a/b": (b"x", 1)}, targets_version=data.draw(st.integers(1, 3)))
    begin = State.verified(server.roots[0])
    for root, targets in rotations:
        server.rotate(root=root, targets=targets)
    update = server.answer(begin, targets=sign(server.targets(), [f"targets-{n}" for n in range(4)]))
    whole = begin.apply(update, now=NOW)
    state, changed, rest = begin, set(), list(update.roots)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        part = tuple(data.draw(st.permutations(rest[:size])))
        state, products = state.apply(replace(update, roots=part), now=NOW)
        changed |= products
        rest = rest[size:]
    assert (state, changed) == whole


SMALL = Server(("root-0", "root-1"), ("targets-0",), (2, 1), {"employee/TESTING1/a/b": (b"x", 1)}, opaque=b"o")
SMALL.rotate(root=("root-1", "root-2"))


@pytest.mark.parametrize("where", ["root", "targets"])
@settings(max_examples=settings().max_examples * 2)
@given(at=st.integers(0, 10_000), mask=st.integers(1, 255))
def test_one_byte_never_makes_another_state(where: str, at: int, mask: int) -> None:
    """Refused, or of no effect: a signature more than needed, a space, a member that nothing is made of."""
    begin = State.verified(SMALL.roots[0])
    update = SMALL.answer(begin)
    honest = begin.apply(update, now=NOW).state
    raw = bytearray(update.targets if where == "targets" else update.roots[0])
    raw[at % len(raw)] ^= mask
    changed = replace(update, targets=bytes(raw)) if where == "targets" else replace(update, roots=(bytes(raw),))
    try:
        got = begin.apply(changed, now=NOW).state
    except RemoteError:
        return
    assert got.trusted is not None
    assert honest.trusted is not None
    assert (got.root_version, got.targets_version, got.opaque) == (2, honest.targets_version, b"o")
    assert got.configs == honest.configs
    assert got.trusted.root == honest.trusted.root
