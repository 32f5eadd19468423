"""Hypothesis strategies that more than one property test draws from."""

from __future__ import annotations

from hypothesis import strategies as st

components = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=8)
"""A component of a configuration path: anything but a slash."""

orgs = st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 9)).map(str)

products = st.sampled_from(["TESTING1", "TESTING2", "AGENT_CONFIG", "ASM_FEATURES", "APM_TRACING"])


@st.composite
def config_paths(draw: st.DrawFn) -> str:
    """A path that follows the grammar, of a product that exists."""
    source = draw(st.one_of(st.just("employee"), orgs.map("datadog/{}".format)))
    return "/".join((source, draw(products), draw(components), draw(components)))


contents = st.binary(max_size=64)
"""The bytes of a configuration file."""

versions = st.integers(0, 2**64 - 1)
"""A configuration's own version."""


def key_names(role: str, most: int = 3) -> st.SearchStrategy[tuple[str, ...]]:
    """One to ``most`` distinct keys of a role, out of a few, so that rotations overlap now and then."""
    names = [f"{role}-{n}" for n in range(most + 1)]
    return st.lists(st.sampled_from(names), min_size=1, max_size=most, unique=True).map(tuple)


pids = st.integers(1, 6)
"""A process, out of a few, so that they meet."""
