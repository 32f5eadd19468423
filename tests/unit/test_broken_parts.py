"""Metrics, deltas, debug endpoints and the reading of maps, broken on purpose: their tests must find each.

Each class or function says what it breaks. The registry, the watcher and the monitor: ``tests/properties``.
"""

import os

import pytest
import test_debug_endpoints as endpoint_tests
import test_maps
import test_telemetry
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from harness.debugger import Debugger, endpoints
from harness.debugger.endpoints import text
from harness.telemetry import Counter, Deltas, Registry
from harness.watcher import maps


class KeepsTheOrderOfTags(Registry):
    """The same tags in another order are another metric."""

    def _find_or_make(self, kind, name, words, help):
        words = list(words)
        return super()._find_or_make(kind, name + str(words), words, help)


class TakesOptionsForTags(Registry):
    """Where it is shown is part of what a metric is."""

    def _find_or_make(self, kind, name, words, help):
        options = "".join(sorted(word for word in words if word.startswith("_")))
        return super()._find_or_make(kind, name + options, words, help)


class GivesWhatItHas(Registry):
    """A name that is taken by another kind is no error."""

    def _find_or_make(self, kind, name, words, help):
        try:
            return super()._find_or_make(kind, name, words, help)
        except TypeError:
            return kind(name, (), frozenset())


def goes_down(self, amount=1):
    """A counter takes any amount."""
    self._value += amount


def stands_still(self, amount=1):
    """A counter of how often, not how many."""
    self._value += amount > 0


class OneForAll(Deltas):
    """What one client has seen, all have."""

    def take(self, client, *options):
        return super().take("all", *options)


class TellsGrowthOfGauges(Deltas):
    """A gauge is told like a counter."""

    def take(self, client, *options):
        told = super().take(client, *options)
        before = self.__dict__.setdefault("gauges", {})
        for metric in self.registry.metrics(*options):
            if not isinstance(metric, Counter):
                key = client, metric.identity
                told[metric.identity] -= before.get(key, 0)
                before[key] = metric.value
        return told


ORDER = test_telemetry.test_one_object_whatever_the_order_of_tags, (test_telemetry.tags, st.randoms())
UP = test_telemetry.test_counters_only_go_up_and_gauges_anywhere, (test_telemetry.amounts,)
GROWTH = test_telemetry.test_what_a_client_got_adds_up_to_the_value, (test_telemetry.steps,)
TELEMETRY = [
    ("Registry", KeepsTheOrderOfTags, ORDER),
    ("Registry", TakesOptionsForTags, ORDER),
    ("Counter.add", goes_down, UP),
    ("Counter.add", stands_still, UP),
    ("Deltas", OneForAll, GROWTH),
    ("Deltas", TellsGrowthOfGauges, GROWTH),
]


class AsksForTheTokenFirst(Debugger):
    """401 before 405."""

    def _write(self, request, verb):
        if not self._may_write(request.headers.get("authorization", "")):
            return text(401, "no")
        return super()._write(request, verb)


class ReadsTheBodyFirst(Debugger):
    """400 before 401."""

    def _write(self, request, verb):
        if request.method == "POST" and endpoints._parsed(request.body) is None:
            return text(400, "no")
        return super()._write(request, verb)


class TakesAnyScheme(Debugger):
    """The token by whatever scheme."""

    def _may_write(self, authorization):
        return super()._may_write(f"Bearer {authorization.partition(' ')[2]}")


class TakesAnyToken(Debugger):
    """Whoever says Bearer may write."""

    def _may_write(self, authorization):
        return authorization.lower().startswith("bearer")


class HidesUnknownTypes(Debugger):
    """404 for a type that is not enabled."""

    def _write(self, request, verb):
        response = super()._write(request, verb)
        return text(404, "no") if b"is not enabled" in response.body else response


class HidesFailures(Debugger):
    """200 whatever the callback did."""

    def _write(self, request, verb):
        response = super()._write(request, verb)
        return text(200, "done") if response.status == 500 else response


class DetachesToAttach(Debugger):
    """The other callback."""

    def _write(self, request, verb):
        return super()._write(request, "attach" if verb == "detach" else "detach")


DEBUGGERS = [
    AsksForTheTokenFirst,
    ReadsTheBodyFirst,
    TakesAnyScheme,
    TakesAnyToken,
    HidesUnknownTypes,
    HidesFailures,
    DetachesToAttach,
]


def lines(text, wanted):
    """Paths of the lines that are wanted."""
    fields = [line.split() for line in text.split(b"\n")]
    return [os.fsdecode(each[5].replace(b"\\012", b"\n")) for each in fields if len(each) > 5 and wanted(each)]


def comes_again(text):
    """A path for each of its mappings."""
    return lines(text, lambda fields: len(fields) == 6 and fields[4] != b"0")


def takes_deleted_files(text):
    """Lines of seven fields."""
    return list(dict.fromkeys(lines(text, lambda fields: fields[4] != b"0")))


def takes_anonymous_regions(text):
    """Inode 0."""
    return list(dict.fromkeys(lines(text, lambda fields: len(fields) == 6)))


def leaves_newlines_escaped(text):
    """As the kernel writes them."""
    return [path.replace("\n", "\\012") for path in maps.mapped_files(text)]


MAPS = [comes_again, takes_deleted_files, takes_anonymous_regions, leaves_newlines_escaped]


SEARCH = settings(
    derandomize=True, max_examples=1000, database=None, deadline=None, phases=[Phase.generate],
    report_multiple_bugs=False, print_blob=False,
)  # fmt: skip
"""For what is to fail: not shrunk and not kept, for that it fails is all that is asked."""


def search(test, strategies):
    """Run a property as it is written, but with these settings and not its own."""
    SEARCH(given(*strategies)(test.hypothesis.inner_test))()


@pytest.mark.parametrize(("name", "broken", "law"), TELEMETRY, ids=lambda case: getattr(case, "__name__", ""))
def test_broken_metrics_are_found(name, broken, law, monkeypatch):
    monkeypatch.setattr(f"test_telemetry.{name}", broken)
    with pytest.raises(AssertionError):
        search(*law)


def test_a_registry_that_ignores_kinds_is_found(monkeypatch):
    monkeypatch.setattr(test_telemetry, "Registry", GivesWhatItHas)
    with pytest.raises(pytest.fail.Exception):
        test_telemetry.test_another_kind_is_an_error()


@pytest.mark.parametrize("broken", DEBUGGERS, ids=lambda broken: broken.__name__)
def test_broken_endpoints_are_found(broken, monkeypatch):
    monkeypatch.setattr(endpoint_tests, "Debugger", broken)
    with pytest.raises(AssertionError):
        endpoint_tests.test_statuses_of_every_write_that_is_known()


@pytest.mark.parametrize("broken", MAPS, ids=lambda broken: broken.__name__)
def test_a_broken_reading_of_maps_is_found(broken, monkeypatch):
    monkeypatch.setattr(test_maps, "mapped_files", broken)
    with pytest.raises(AssertionError):
        search(test_maps.test_exactly_six_fields_and_an_inode, (test_maps.texts,))


@pytest.mark.parametrize(("test", "strategies"), [ORDER, UP, GROWTH], ids=lambda part: getattr(part, "__name__", ""))
def test_that_which_is_not_broken_is_not_found(test, strategies):
    search(test, strategies)
