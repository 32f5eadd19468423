"""What documents promise is compared with the code that keeps it."""

import json
import re
import sys
import tomllib
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import pytest

from kmt import config, doctor, errors, proc
from kmt.results import KernelResult, Made, Outcome, TestResult, to_json

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NEW_OF_KERNELS = {"error", "recovered", "stands_for", "not_applicable"}
NEW_OF_TESTS = {"verifier", "retries", "expected", "cause"}
"""Keys that came after version 1 of the results was written: files without them are valid."""


def table(document, head):
    """The rows of the Markdown table whose header begins with ``head``, as lists of cells."""
    lines = (DOCS / document).read_text().splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_configuration_describes_every_key_and_its_default():
    described = {row[0].strip("`"): row[1] for row in table("configuration.md", "key")}
    keys = {f.name: f.default for f in fields(config.Config) if f.default is not MISSING}
    assert described.keys() == keys.keys()
    for key, default in keys.items():
        if default != "":
            value = tomllib.loads(f"x = {described[key].strip('`')}")["x"]
            assert (tuple(value) if isinstance(value, list) else value) == default, key


def test_configuration_describes_every_environment_variable():
    used = set()
    for path in (ROOT / "kmt").rglob("*.py"):
        used |= set(re.findall(r'environ(?:\.get\(|\[)"(KMT_\w+|PYTHON)"', path.read_text()))
    text = (DOCS / "configuration.md").read_text()
    private = {"KMT_CWD", "KMT_CHANNEL_FD", "KMT_ROOM"}
    assert {name for name in used - private if f"`{name}" not in text} == set()


def test_results_describe_every_key():
    result = KernelResult("6.1", tests=[TestResult("t", "passed", 1.0)])
    document = to_json([result], Made("", 1.0, 0))
    described = {row[0] for row in table("results.md", "key")}
    assert described == {f"`{key}`" for key in document}
    schema = json.loads((DOCS / "results.schema.json").read_text())
    assert schema["properties"].keys() == document.keys() == set(schema["required"]) | {"part"}
    kernel, test = schema["$defs"]["kernel"], schema["$defs"]["test"]
    assert kernel["properties"].keys() == document["kernels"][0].keys() == set(kernel["required"]) | NEW_OF_KERNELS
    assert test["properties"].keys() == asdict(result.tests[0]).keys() == set(test["required"]) | NEW_OF_TESTS
    assert set(kernel["properties"]["outcome"]["enum"]) == set(Outcome)
    text = (DOCS / "results.md").read_text()
    assert [key for key in document["kernels"][0] if f"`{key}`" not in text] == []
    assert {row[0].strip("`") for row in table("results.md", "word")} == set(Outcome)


def test_exit_statuses_are_described():
    described = {n for row in table("results.md", "status") for n in row[0].split(", ")}
    ours = {str(c.exit_status) for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.KmtError)}
    assert described == {*"0123", *"45", *ours}


def test_the_packages_are_written_down_once_and_well():
    packages = doctor.packages((ROOT / "vms/packages.txt").read_text())
    assert len({package.name for package in packages}) == len(packages) > 5
    assert all(re.fullmatch(r"[a-z0-9.+-]+", package.name) and package.why for package in packages)


@pytest.mark.parametrize("command", re.findall(r"^\./inv (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE))
def test_the_commands_of_the_readme_exist(command):
    import tasks

    assert command in tasks.namespace.task_names


def test_the_options_of_the_readme_exist():
    used = set(re.findall(r"(--kernel(?:-\w+)*)\b", (ROOT / "README.md").read_text()))
    known = set(re.findall(r"--[\w-]+", proc.run([sys.executable, "-m", "pytest", "--help"], cwd=ROOT).stdout))
    assert used - known == {"--kernels"} & used
    assert "--kernel" in used
