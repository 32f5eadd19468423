"""Metadata as they occur in the field: what is validly signed is accepted, in whatever dress."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf_server import EARLIER, LATER, NOW, Server, key, key_id, root_object, sign

from harness.remote import metadata, tuf
from harness.remote.errors import MetadataError, PathError, RemoteError, RollbackError, ThresholdError, TooLargeError
from harness.remote.state import PRODUCTS, State


def root(**changes: Any) -> dict[str, Any]:
    """A root's signed part, with some members replaced."""
    return root_object(1, ["root-0"], ["targets-0"], expires=LATER) | changes


def accepts(signed: dict[str, Any], **how: Any) -> None:
    """The root is loaded, and a targets update under it too."""
    server = Server(roots=[sign(signed, ["root-0"], **how)])
    state = State.verified(server.roots[0])
    assert state.apply(server.answer(state), now=NOW).state.targets_version == 1


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2033-01-22T14:42:43.82606+01:00", datetime(2033, 1, 22, 13, 42, 43, 826060, UTC)),
        ("2033-01-22T14:42:43.826065678Z", datetime(2033, 1, 22, 14, 42, 43, 826065, UTC)),
        ("2033-01-22T14:42:43Z", datetime(2033, 1, 22, 14, 42, 43, 0, UTC)),
        ("2033-01-22t14:42:43.5-23:59", datetime(2033, 1, 23, 14, 41, 43, 500000, UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
    ],
)
def test_expiries(text: str, instant: datetime) -> None:
    assert metadata.parse_expiry(text) == instant
    if instant > NOW:
        accepts(root(expires=text))


@pytest.mark.parametrize(
    "text",
    ["", "2033-01-22", "2033-01-22T14:42:43", "2033-01-22 14:42:43Z", "20330122T144243Z", "2033-02-30T00:00:00Z",
     "2033-01-22T24:00:00Z", "2033-01-22T14:42:43,5Z", "2033-01-22T14:42:43Z\n", "٢033-01-22T14:42:43Z",
     "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:60Z", "0000-01-01T00:00:00Z", "2033-01-22T14:42:43+0100"],
)  # fmt: skip
def test_no_expiries(text: str) -> None:
    with pytest.raises(ValueError, match=r"RFC 3339|outside|day|year|month"):
        metadata.parse_expiry(text)
    with pytest.raises(MetadataError, match="no usable expiry"):
        tuf.load_root(sign(root(expires=text), ["root-0"]))


def test_roles_that_this_client_does_not_use_may_be_missing_or_misspelt() -> None:
    roles = root()["roles"]
    accepts(root(roles={name: roles[name] for name in ("root", "targets")}))
    accepts(root(roles={**{n: roles[n] for n in ("root", "targets")}, "snapsot": {"keyids": [], "threshold": 0}}))
    for needed in ("root", "targets"):
        with pytest.raises(MetadataError, match=needed):
            tuf.load_root(sign(root(roles={n: r for n, r in roles.items() if n != needed}), ["root-0"]))


def test_a_short_spec_version_and_unknown_members() -> None:
    accepts(root(spec_version="1.0", x_more={"a": [1, None, "é\x07"]}))


def test_key_ids_that_are_no_hash() -> None:
    signed = root(keys={"r": key("root-0"), "t": key("targets-0")})
    signed["roles"] |= {"root": {"keyids": ["r"], "threshold": 1}, "targets": {"keyids": ["t"], "threshold": 1}}
    accepts(signed)
    accepts(signed, ids={"root-0": "r"})


def test_a_repeated_key_id_and_a_key_of_unknown_type_do_no_harm() -> None:
    signed = root()
    signed["keys"]["odd"] = {"keytype": "quantum", "scheme": "x", "keyval": {"public": ""}}
    signed["roles"]["root"]["keyids"] += [key_id("root-0"), "odd", "missing"]
    accepts(signed)
    signed["roles"]["root"]["threshold"] = 2
    with pytest.raises(ThresholdError, match="1 of 2"):
        tuf.load_root(sign(signed, ["root-0"]))


def test_other_kinds_of_keys() -> None:
    for signer in (
        CryptoSigner(generate_private_key(SECP256R1())),
        CryptoSigner(generate_rsa(public_exponent=65537, key_size=2048)),
    ):
        public = signer.public_key
        signed = root(keys={public.keyid: public.to_dict()})
        signed["roles"]["root"]["keyids"] = signed["roles"]["targets"]["keyids"] = [public.keyid]
        signature = signer.sign((encode_canonical(signed) or "").encode()).signature
        whole: dict[str, Any] = {"signed": signed, "signatures": [{"keyid": public.keyid, "sig": signature}]}
        assert len(tuf.load_root(json.dumps(whole).encode()).targets_keys) == 1
        whole["signatures"][0]["sig"] = ("1" if signature[0] == "0" else "0") + signature[1:]
        with pytest.raises(ThresholdError):
            tuf.load_root(json.dumps(whole).encode())


def test_what_is_wrong_among_the_signatures_is_skipped() -> None:
    whole = json.loads(sign(root(), ["root-0"]))
    good = whole["signatures"][0]
    wrong = [{"keyid": good["keyid"], "sig": sig} for sig in ("", "zz", "00" * 64)]
    for signatures in ([*wrong, good], [good, *wrong, good], [{"keyid": "nobody", "sig": good["sig"]}, good]):
        tuf.load_root(json.dumps(whole | {"signatures": signatures}).encode())
    with pytest.raises(TooLargeError, match="signatures"):
        tuf.load_root(json.dumps(whole | {"signatures": [good] * 257}).encode())


def test_an_embedded_root_may_be_expired_but_not_stay_in_force() -> None:
    server = Server(roots=[sign(root_object(1, ["root-0"], ["targets-0"], expires=EARLIER), ["root-0"])])
    state = State.verified(server.roots[0])
    with pytest.raises(RemoteError, match="root 1 expired at 2030-05-31"):
        state.apply(server.answer(state), now=NOW)
    server.rotate(expires=NOW + timedelta(seconds=1))
    assert state.apply(server.answer(state), now=NOW).state.root_version == 2


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"signed":' * 2000, b'{"signed":1e9,"signatures":[]}',
     b'{"signed":{"_type":"root","version":1.5},"signatures":[]}', b'{"signed":{"a":"\\ud800"},"signatures":[]}',
     b'{"signed":{"_type":"root"},"signatures":{}}', b'{"signed":{"_type":"root"},"signatures":[1]}',
     b'{"signed":{"_type":"root"},"signatures":[{"keyid":[],"sig":""}]}',
     b'{"signed":{"_type":"root"},"signatures":[{"keyid":1,"sig":2}]}', b'{"signed":{"version":' + b"9" * 5000 + b"}}"],
)  # fmt: skip
def test_junk_is_a_typed_error(raw: bytes) -> None:
    trusted = tuf.load_root(sign(root(), ["root-0"]))
    for read in (State.verified, tuf.root_version, lambda junk: tuf.read_targets(junk, trusted, NOW)):
        with pytest.raises(MetadataError):
            read(raw)


@pytest.mark.parametrize("where", ["keys", "roles"])
@pytest.mark.parametrize("value", [None, 1, [], "x", {"a": 1}, {"root": {}, "targets": {}}, {"root": 1, "targets": 1}])
def test_members_of_a_wrong_type(where: str, value: Any) -> None:
    with pytest.raises(RemoteError):
        tuf.load_root(sign(root(**{where: value}), ["root-0"]))


@pytest.mark.parametrize(
    "role",
    [
        {"keyids": "ab", "threshold": 1},
        {"keyids": [], "threshold": 0},
        {"keyids": [[]], "threshold": 1},
        {"keyids": [], "threshold": True},
        {"keyids": []},
    ],
)
def test_roles_that_make_no_sense(role: dict[str, Any]) -> None:
    with pytest.raises(RemoteError):
        tuf.load_root(sign(root(roles={**root()["roles"], "targets": role}), ["root-0"]))


@pytest.mark.parametrize("verified", [True, False])
def test_targets_of_version_0(verified: bool) -> None:
    """Accepted, and older than those of version 1."""
    server = Server(targets_version=0, files={"employee/TESTING1/a/b": (b"", 0)})
    state = State.verified(server.roots[0]) if verified else State.unverified()
    oldest = server.answer(state)
    state = state.apply(oldest, now=NOW).state
    assert (state.targets_version, list(state.configs)) == (0, ["employee/TESTING1/a/b"])
    server.targets_version = 1
    state = state.apply(server.answer(state), now=NOW).state
    assert state.targets_version == 1
    if verified:
        with pytest.raises(RollbackError, match="targets 0 are older than targets 1"):
            state.apply(oldest, now=NOW)


numbers = st.integers(-(10**30), 10**30)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(json_values)
def test_the_canonical_form_is_the_library_s(value: Any) -> None:
    """Control characters, quotes and backslashes included; the encoder of json would escape more of them."""
    assert metadata.canonical_form(value) == encode_canonical(value).encode()


@pytest.mark.parametrize("text", ["\x00\x1f\x7f", "\u2028é😀", '"', "\\", "\\u0041", "/", "\b\f\n\r\t"])
def test_the_canonical_form_of_what_json_writes_otherwise(text: str) -> None:
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    assert metadata.canonical_form({text: [text]}) == f'{{"{plain}":["{plain}"]}}'.encode()


@pytest.mark.parametrize("number", ["1.0", "1e9", "1e99999999999999999999", "-0.0", "NaN", "Infinity"])
def test_a_number_with_a_fraction_cannot_be_signed_and_may_stand_outside(number: str) -> None:
    server = Server()
    raw = server.answer(State.unverified()).targets
    for part in (b'"version": 1', b'"targets": {}'):
        inside = raw.replace(part, part + b', "x": [' + number.encode() + b"]")
        with pytest.raises(MetadataError, match="canonical form"):
            tuf.read_targets(inside, tuf.load_root(server.roots[0]), NOW)
        assert tuf.believe_targets(inside).version == 1
    outside = raw.replace(b'{"signatures"', b'{"x": ' + number.encode() + b', "signatures"')
    assert tuf.read_targets(outside, tuf.load_root(server.roots[0]), NOW).version == 1


PATH = "employee/TESTING1/a/b"


@pytest.mark.parametrize("gone", ["_type", "version", "spec_version", "expires"])
def test_unverified_targets_need_no_more_than_targets(gone: str) -> None:
    server = Server(files={PATH: (b"x", 7)}, targets_version=3, opaque=b"mine")
    signed = {name: value for name, value in server.targets().items() if name != gone}
    state = State.unverified()
    for body in (signed, {name: signed[name] for name in ("targets", "custom")}):
        update = server.answer(state, targets=json.dumps({"signed": body}).encode())
        got = state.apply(update, now=NOW).state
        assert (got.targets_version, got.opaque) == (body.get("version", 0), b"mine")
        assert got.configs[PATH].version == 7


@pytest.mark.parametrize(
    "change",
    [{"_type": "root"}, {"_type": None}, {"version": "1"}, {"version": -1}, {"version": 2**63}, {"targets": []}],
)
def test_what_unverified_targets_do_say_must_make_sense(change: dict[str, Any]) -> None:
    server = Server(files={PATH: (b"x", 7)})
    state = State.unverified()
    with pytest.raises(MetadataError):
        state.apply(server.answer(state, targets=sign(server.targets() | change, [])), now=NOW)
    with pytest.raises(MetadataError, match="targets"):
        state.apply(server.answer(state, targets=b'{"signed": {}}'), now=NOW)


def test_a_version_that_fits_no_request() -> None:
    """A request names both versions, in 64 bits."""
    accepts(root(version=2**63 - 1))
    for version in (b"%d" % 2**63, b"9" * 4000, b"9" * 5000):
        with pytest.raises(MetadataError, match="root metadata"):
            tuf.root_version(b'{"signed": {"_type": "root", "version": %s}, "signatures": []}' % version)


def test_half_a_surrogate_pair_in_a_path() -> None:
    """JSON can say it, and no message of the wire can."""
    path = "employee/TESTING1/\ud800/b"
    server = Server(files={path: (b"", 0)})
    state = State.unverified()
    with pytest.raises(PathError, match="no Unicode text"):
        state.apply(server.answer(state, targets=json.dumps({"signed": server.targets()}).encode()), now=NOW)


def test_versions_below_the_first() -> None:
    with pytest.raises(MetadataError, match="root metadata have version 0, no integer from 1"):
        tuf.load_root(sign(root(version=0), ["root-0"]))
    with pytest.raises(MetadataError, match="targets metadata have version -1, no integer from 0"):
        tuf.believe_targets(sign(Server(targets_version=-1).targets(), []))


def test_products() -> None:
    assert len(PRODUCTS) == 24
    server = Server(files={"employee/MINE/a/b": (b"", 0)})
    state = State.verified(server.roots[0], products=frozenset({"MINE"}))
    assert state.apply(server.answer(state), now=NOW).products == {"MINE"}
