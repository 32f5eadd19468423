"""How the shared-libraries program is told about where it cannot be loaded: real stages, all of which lose."""

import logging

import pytest

from harness.ebpf import core, loading
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.errors import AssetError, FallbackError
from harness.watcher import program


@pytest.fixture(autouse=True)
def _fresh_loader():
    core.reset()
    yield
    core.reset()


@pytest.mark.parametrize(
    ("switches", "error", "warned"),
    [
        ({}, AssetError, ["CO-RE", "runtime"]),
        ({"allow_prebuilt_fallback": False}, FallbackError, ["CO-RE"]),
        ({"allow_runtime_compiled_fallback": False}, AssetError, ["CO-RE"]),
        ({"allow_runtime_compiled_fallback": False, "allow_prebuilt_fallback": False}, FallbackError, []),
        ({"enable_co_re": False}, AssetError, []),
    ],
)
def test_only_a_failure_that_another_attempt_followed_is_warned_of(tmp_path, caplog, switches, error, warned):
    caplog.set_level(logging.DEBUG, logger=loading.log.name)
    with pytest.raises(error):
        program.start(LiveKernel(), BpfSettings(tmp_path, **switches))
    said = [r.getMessage() for r in caplog.records if r.name == loading.log.name and r.levelno == logging.WARNING]
    assert [line.split(": ")[1:3] for line in said] == [[stage, "failed"] for stage in warned]


def test_who_asks_for_no_signature_needs_no_btf(tmp_path):
    assert LiveKernel(btf_file=tmp_path / "none").signatures(frozenset()) == {}
