"""What pytest's own ``--junitxml`` lacks: which kernel a test ran on, and kernels that were lost without a test.

Every test of a guest gets the properties of ``properties`` (the plugin adds them to its reports); after pytest has
written the file, ``complete`` adds a property a kernel to the suite and a test case for each kernel that did not
work. Laws: what infrastructure or a build did is an ``<error>``, never a ``<failure>``; an unavailable row is
``<skipped>`` unless it is named in ``strict``; what ran on simulated kernels is a suite of its own, so that no number
adds both up; the suites' counts are right again afterwards.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Sequence
from pathlib import Path

from kmt.errors import ConfigError
from kmt.paths import published
from kmt.results import NOT_APPLICABLE, KernelResult, Outcome

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def properties(kernel: KernelResult) -> list[tuple[str, str]]:
    """For ``user_properties`` of a test's report: kernel, release, accelerator, backend, simulated."""
    return [
        ("kernel", kernel.name),
        ("release", kernel.release),
        ("accelerator", kernel.accelerator),
        ("backend", kernel.backend),
        ("simulated", str(kernel.simulated).lower()),
    ]


def outcome(word: str) -> list[tuple[str, str]]:
    """One more, for a test that is not applicable: its case can be nothing but ``<skipped>``."""
    return [("outcome", word)] if word == NOT_APPLICABLE else []


def complete(path: Path, kernels: Sequence[KernelResult], *, strict: Collection[str] = ()) -> None:
    """Add the kernels to the file that pytest wrote at ``path``. ConfigError when it is none or cannot be written."""
    try:
        document = ElementTree.parse(path)
        suite = document.getroot() if document.getroot().tag == "testsuite" else document.find("testsuite")
        if suite is None:
            raise ConfigError(f"{path} holds no test suite")
        _add(suite, kernels, strict)
        _divide(document.getroot(), suite)
        with published(path) as work:
            document.write(work, encoding="utf-8", xml_declaration=True)
    except (OSError, ElementTree.ParseError) as error:
        raise ConfigError(f"{path}: {error}", hint="name another file for the JUnit results") from None


def _add(suite: ElementTree.Element, kernels: Sequence[KernelResult], strict: Collection[str]) -> None:
    shared = suite.find("properties")
    if shared is None:
        shared = ElementTree.Element("properties")
        suite.insert(0, shared)
    for kernel in kernels:
        words = [kernel.release, kernel.accelerator, kernel.outcome.value]
        value = " ".join(w for w in words if w)
        ElementTree.SubElement(shared, "property", name=f"kernel {kernel.name}", value=_clean(value))
        if kernel.outcome not in (Outcome.OK, Outcome.FAILED, Outcome.STOPPED):
            _case(suite, kernel, strict)


def _case(suite: ElementTree.Element, kernel: KernelResult, strict: Collection[str]) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname="kmt", name=f"kernel[{kernel.name}]", time=f"{kernel.seconds:.3f}"
    )
    held = ElementTree.SubElement(case, "properties")
    for name, value in properties(kernel):
        ElementTree.SubElement(held, "property", name=name, value=_clean(value))
    tag = "skipped" if kernel.outcome is Outcome.UNAVAILABLE and kernel.name not in strict else "error"
    verdict = ElementTree.SubElement(case, tag, type=f"kmt.{kernel.outcome.value}", message=_clean(kernel.reason))
    verdict.text = _clean("\n".join(w for w in (kernel.reason, kernel.hint) if w))
    for count in ("tests", "errors" if tag == "error" else "skipped"):
        suite.set(count, str(int(suite.get(count, "0")) + 1))


def _divide(root: ElementTree.Element, suite: ElementTree.Element) -> None:
    """Move the cases of simulated kernels into a suite behind ``suite``."""
    moved = [case for case in suite.findall("testcase") if _property(case, "simulated") == "true"]
    if not moved or root is suite:
        return
    other = ElementTree.Element("testsuite", {**suite.attrib, "name": f"{suite.get('name', 'tests')} (simulated)"})
    for case in moved:
        suite.remove(case)
        other.append(case)
        skipped = case.find("skipped")
        if skipped is not None and _property(case, "outcome") == NOT_APPLICABLE:
            skipped.set("type", "kmt.not_applicable")
    root.insert(list(root).index(suite) + 1, other)
    tags = {"tests": "", "failures": "/failure", "errors": "/error", "skipped": "/skipped"}
    for count, tag in tags.items():
        number = len(other.findall(f"testcase{tag}"))
        other.set(count, str(number))
        suite.set(count, str(max(0, int(suite.get(count, "0")) - number)))
    seconds = sum(float(case.get("time", "0")) for case in moved)
    other.set("time", f"{seconds:.3f}")


def _property(case: ElementTree.Element, name: str) -> str:
    return next((p.get("value", "") for p in case.iter("property") if p.get("name") == name), "")


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
