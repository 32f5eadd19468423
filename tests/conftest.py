"""Shared by all tests: no wall-clock deadlines (machines that run VMs are busy), and a Ctrl-C that can be sent."""

import signal

from hypothesis import settings

from harness.ebpf.live import LiveKernel


def pytest_kmt_kernel_api(kernel):
    """What tests reach a real kernel by: ours, as the harness sees it."""
    return LiveKernel()


settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

# A shell starts background jobs with SIGINT ignored, and so would be every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
