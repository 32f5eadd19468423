"""What a guest of Vagrant's costs, from pytest's start to its first test: one, three at once, one that was kept.

``python benchmarks/vagrant.py [--kernels 5.10,6.1,6.12]``: a project with one test, real pytest sessions, the box made
before. Run it on a machine that does nothing else.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEST = "import time\ndef test_first(kernel): print(f'begun {time.time()}')\n"
PROJECT = "[tool.pytest.ini_options]\ntestpaths = ['.']\n"


def session(root, kernels, *words):
    """Seconds from the start of a pytest session to the first report of a test, and to its end."""
    begin = time.monotonic()
    argv = [sys.executable, "-m", "pytest", "-v", "--kernel-backend=vagrant", "-p", "no:cacheprovider", *words]
    argv += [word for kernel in kernels for word in ("--kernel", kernel)]
    first = 0.0
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, text=True) as child:
        said = []
        for line in child.stdout:
            said.append(line)
            if not first and "PASSED" in line:
                first = time.monotonic() - begin
    if child.returncode or not first:
        raise SystemExit("".join(said))
    return first, time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kernels", default="6.12,6.1,5.10", help="those of the parallel run; the first runs alone")
    options = parser.parse_args()
    kernels = options.kernels.split(",")
    with tempfile.TemporaryDirectory(prefix="kmt-bench-") as room:
        root = Path(room)
        (root / "test_first.py").write_text(TEST)
        (root / "pyproject.toml").write_text(PROJECT)
        for what, names, words in (
            ("one kernel", kernels[:1], ()),
            (f"{len(kernels)} kernels at once", kernels, ("--kernel-jobs=3",)),
            ("one to be kept", kernels[:1], ("--kernel-keep=5",)),
            ("the second session on it", kernels[:1], ("--kernel-keep=5",)),
        ):
            first, end = session(root, names, *words)
            print(f"{what:26} first test after {first:6.1f} s, over after {end:6.1f} s", flush=True)
        subprocess.run([sys.executable, "-m", "kmt", "stop"], cwd=root, check=False, capture_output=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
