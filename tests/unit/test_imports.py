"""What a session waits for before its first test: modules that are imported, seen in a process of their own."""

import json
import subprocess
import sys

import pytest


def imported(code):
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        # Sessions that ask for no kernel.
        ("import kmt.pytest_plugin", {"kmt.plugin.session", "kmt.run.pool", "kmt.archive", "rich", "psutil", "xml"}),
        # Sessions that do, while no guest has been started.
        ("import kmt.plugin.session", {"kmt.plugin.collect", "kmt.keeper.client", "kmt.backends.qemu", "rich"}),
        # Guests without a compiler, of kernels and images that are there.
        ("import kmt.backends.qemu", {"kmt.roots.compiler", "rich", "debian.deb822", "debian.debfile"}),
    ],
)
def test_what_is_not_needed_yet_is_not_imported(code, heavy):
    found = imported(code)
    assert "kmt" in found
    assert found & heavy == set()
