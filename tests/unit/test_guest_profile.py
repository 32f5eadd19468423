"""How many examples a property has in a guest: as was chosen, and fewer under emulation only where nobody chose."""

import pytest
from guest_sessions import told

from kmt.guest.database import EMULATED_EXAMPLES
from kmt.guest.wire import Kind

PROPERTY = """
from hypothesis import given, settings, strategies as st

def test_settings(record_property):
    record_property("examples", settings.default.max_examples)
    record_property("deadline", settings.default.deadline)
    record_property("verbosity", settings.default.verbosity.name)
    record_property("database", type(settings.default.database).__name__)
"""
REGISTERED = """
from hypothesis import settings
settings.register_profile("thorough", max_examples=1000)
settings.register_profile("quiet", deadline=None)
settings.register_profile("few", max_examples=5)
"""
KMT_TCG = 'settings.register_profile("kmt-tcg", max_examples=70)\n'


def loading(name):
    return f"settings.load_profile({name!r})\n"


@pytest.mark.parametrize(
    ("more", "options", "accelerator", "examples"),
    [
        ("", [], "tcg", EMULATED_EXAMPLES),
        ("", [], "kvm", 100),
        (loading("quiet"), [], "tcg", EMULATED_EXAMPLES),
        (loading("thorough"), [], "tcg", 1000),
        (loading("few"), [], "tcg", 5),
        (KMT_TCG, [], "tcg", 70),
        (KMT_TCG, ["--hypothesis-profile=thorough"], "tcg", 1000),
        ("", ["--hypothesis-profile=quiet", "--hypothesis-verbosity=verbose"], "tcg", 100),
    ],
)
def test_what_was_chosen_is_kept(tmp_path, more, options, accelerator, examples):
    frames = told(
        tmp_path,
        PROPERTY,
        REGISTERED + more,
        options=options,
        accelerator=accelerator,
        ids=["test_it.py::test_settings"],
    )
    said = dict(next(b["report"]["user_properties"] for b in frames[Kind.REPORT] if b["report"]["when"] == "call"))
    assert said["examples"] == examples
    assert said["database"] == "HostDatabase"
    assert said["verbosity"] == ("verbose" if "--hypothesis-verbosity=verbose" in options else "normal")
    assert said["deadline"] is None or (more == KMT_TCG and not options)
