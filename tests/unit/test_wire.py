import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.guest.wire import LIMIT, RAW, Decoder, Frame, Kind, WireError, pack

BODIES = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans()))


@st.composite
def frames(draw):
    kind = draw(st.sampled_from(Kind))
    return Frame(kind, {}, draw(st.binary())) if kind in RAW else Frame(kind, draw(BODIES))


@given(st.lists(frames()), st.data())
def test_any_slicing_gives_the_same_frames(sent, data):
    stream = b"".join(pack(f.kind, f.body, f.raw) for f in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    decoder = Decoder()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == sent


@given(st.binary())
def test_hostile_bytes_give_frames_or_a_wire_error(data):
    try:
        for frame in Decoder().feed(data):
            assert isinstance(frame.kind, Kind)
    except WireError:
        pass


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\0\0\0\0", "no kind of frame"),
        (bytes([Kind.DATA]) + (LIMIT + 1).to_bytes(4, "big"), "the limit is"),
        (bytes([Kind.HELLO]) + b"\0\0\0\1{", "is no JSON"),
        (bytes([Kind.HELLO]) + b"\0\0\0\2[]", "holds no object"),
    ],
)
def test_what_is_wrong_is_said(data, said):
    with pytest.raises(WireError, match=said):
        list(Decoder().feed(data))


def test_a_frame_over_the_limit_is_not_sent():
    with pytest.raises(WireError, match="over the limit"):
        pack(Kind.DATA, raw=bytes(LIMIT + 1))
