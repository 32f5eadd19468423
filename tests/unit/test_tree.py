"""Rules about files: how long they may be, what they begin with, what is never written in them."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 350
"""Lines of a module; beyond about 300 it is time to divide it."""
LIMIT_OF_TESTS = 600


def tracked(*patterns):
    done = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def readable(paths):
    return [(path, path.read_text(errors="replace")) for path in paths]


PYTHON = readable(tracked("*.py"))


def names(pairs):
    return [str(path.relative_to(ROOT)) for path, _ in pairs]


@pytest.mark.parametrize(("path", "text"), PYTHON, ids=names(PYTHON))
def test_modules_are_short_and_say_what_they_are(path, text):
    room = path.relative_to(ROOT).parts[0]
    assert len(text.splitlines()) <= (LIMIT_OF_TESTS if room == "tests" else LIMIT)
    if room in ("kmt", "harness") or path.name == "tasks.py":
        assert ast.get_docstring(ast.parse(text)), "a module says its job in its first lines"


def test_no_two_test_modules_have_one_name():
    """pytest imports them by their names alone."""
    found = [path.name for path, _ in PYTHON if path.name.startswith("test_")]
    assert sorted(found) == sorted(set(found))


def test_no_host_of_a_mirror_or_registry_is_named():
    host = re.compile(r"\b(?:deb|security|archive|snapshot|ftp)\.(?:debian|ubuntu)\.(?:org|com)\b|\bpypi\.org\b")
    named = [str(path.relative_to(ROOT)) for path, text in readable(tracked()) if host.search(text)]
    assert named == []


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "inv", ".ci/run"])
def test_what_any_project_has_is_there(name):
    assert (ROOT / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["inv", ".ci/run"])
def test_scripts_can_be_run(name):
    assert (ROOT / name).stat().st_mode & 0o111


def test_links_in_documents_lead_somewhere():
    dead = []
    for path, text in readable(tracked("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (path.parent / target).exists():
                dead.append(f"{path.relative_to(ROOT)}: {target}")
    assert dead == []
