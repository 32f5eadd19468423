"""The pytest plugin of a process whose tests run on a simulated kernel (``-p kmt.simulator.session``).

Laws: before a line of the project is run, this machine's own kernel is out of reach (``fence.py``); ``kernel.api`` is
one simulated kernel for the whole session, whatever the project says of real ones; a test in which that kernel could
not tell something is neither passed nor failed, however it went on from there; a feature of which nothing can be told
keeps no test from running, as with real kernels. Which tests come here is ``kmt/plugin``'s to say.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.kernel_api import Feature
from kmt.errors import CannotTellError, ConfigError
from kmt.results import NOT_APPLICABLE
from kmt.simulator import fence
from kmt.simulator.kernel import SimulatedKernel, simulated
from kmt.simulator.loaded import SimulatedObject
from kmt.simulator.proc_tree import ProcTree

if TYPE_CHECKING:
    from kmt.guest.plugin import KernelInfo

SEED = 0
"""Of all simulated kernels: a test that failed fails again."""
_ANSWERS = ("load", "probe", "signatures", "symbols")
_OF_OBJECTS = ("attach", "attach_uprobe", "attach_kprobes", "attach_uprobes")


def pytest_addoption() -> None:
    """Called as soon as this plugin is known: before the next ``-p`` is imported, which may be the project's."""
    try:
        closed = fence.close()
    except ConfigError as error:
        raise pytest.UsageError(f"kmt: {error}") from None
    if not closed:
        raise pytest.UsageError("nobody knows how to keep tests away from the kernel of such a machine")


def pytest_configure(config: pytest.Config) -> None:
    """Have a kernel ready to be asked for."""
    config.pluginmanager.register(Session(), "kmt-simulated")


class Session:
    """The simulated kernel, made when it is first asked for, and what it could not tell."""

    def __init__(self) -> None:
        self._room = tempfile.TemporaryDirectory(prefix="kmt-")
        self._kernel: SimulatedKernel | None = None
        self._untold: list[str] = []
        self._kept: dict[pytest.FixtureDef[Any], list[str]] = {}
        """What was not told while a fixture of more than one test was made, until it ends."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_kmt_kernel_api(self, kernel: KernelInfo) -> SimulatedKernel:
        """The one of that series."""
        if self._kernel is None:
            major, minor, _ = kernel.version
            room = Path(self._room.name)
            self._kernel = simulated(f"{major}.{minor}", room, SEED)
            ProcTree(room, release=self._kernel.release)
            self._listen(self._kernel, _ANSWERS)
        return self._kernel

    def _listen(self, asked: object, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(asked, name, self._heard(getattr(asked, name)))

    def _heard(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        """A fallback chain takes "cannot tell" for one more way that lost: what comes of that is no answer either."""

        @functools.wraps(ask)
        def asked(*args: Any, **kwargs: Any) -> Any:
            try:
                answer = ask(*args, **kwargs)
                if isinstance(answer, SimulatedObject):
                    self._listen(answer, _OF_OBJECTS)
                return answer
            except CannotTellError as error:
                self._untold.append(str(error))
                raise

        return asked

    @pytest.hookimpl(trylast=True)
    def pytest_kmt_probe_simulated(self, feature: str, kernel: KernelInfo) -> bool | None:
        """What a kernel may have or not; the rest is a project's to say."""
        if feature in list(Feature):
            return self.pytest_kmt_kernel_api(kernel).probe(Feature(feature))
        return kernel.headers if feature == "headers" else None

    def pytest_runtest_logstart(self) -> None:
        """A test begins."""
        self._untold.clear()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """What a fixture of many tests was not told, none of them was; one that fails does so for each anew."""
        before = len(self._untold)
        result = yield
        if fixturedef.scope != "function" and self._untold[before:]:
            self._kept[fixturedef] = self._untold[before:]
        return result

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """It has ended."""
        self._kept.pop(fixturedef, None)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say of a test that could not be told of that it is not applicable."""
        report = yield
        said = [str(e) for e in _chain(call.excinfo.value) if isinstance(e, CannotTellError)] if call.excinfo else []
        kept = [why for heard in self._kept.values() for why in heard]
        why = next(iter(self._untold or said or kept), "")
        if why and report.when != "teardown" and (report.when == "call" or not report.passed):
            path, line, _ = item.location
            report.outcome = "skipped"
            report.longrepr = (path, line or 0, f"cannot tell: {why}")
            report.__dict__["kmt_outcome"] = NOT_APPLICABLE
            report.user_properties.append(("outcome", NOT_APPLICABLE))
        return report

    def pytest_unconfigure(self) -> None:
        """Its files go with it."""
        self._room.cleanup()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
