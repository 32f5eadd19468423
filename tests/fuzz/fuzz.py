"""Fuzz the targets of ``fuzz_remote`` by atheris, several at once, each for its share of the time.

``python tests/fuzz/fuzz.py [--seconds 60] [TARGET ...]``. Begins with the inputs in ``corpus/TARGET``; what it finds
on the way stays in a temporary directory. Status 1, and the input kept and named, if anything but a typed error gets
out of a target, or if one input takes ten seconds or two gigabytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SLOWEST = 10
"""Seconds that one input may take."""
LONGEST = 4096
"""Bytes of an input."""
WORDS = (
    "signed", "signatures", "keyid", "sig", "_type", "root", "targets", "snapshot", "timestamp", "version", "expires",
    "spec_version", "1.0.31", "keys", "roles", "keyids", "threshold", "keytype", "scheme", "keyval", "public",
    "ed25519", "length", "hashes", "sha256", "sha512", "custom", "v", "opaque_backend_state", "delegations",
    "2031-06-01T12:00:00Z", "datadog/2/TESTING1/a/b", "employee/ASM/a/b", "order", "internal_order", "log_level",
)  # fmt: skip
"""What libFuzzer puts in besides bytes."""


def main() -> int:
    """Fuzz; the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="default: all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    options = parser.parse_args()
    known = sorted(path.name for path in (HERE / "corpus").iterdir())
    names = options.targets or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no target {unknown[0]!r}: {', '.join(known)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install atheris")
    jobs = min(os.cpu_count() or 1, len(names))
    seconds = max(1, options.seconds * jobs // len(names))
    with ThreadPoolExecutor(jobs) as pool:
        return max(pool.map(lambda name: fuzz(name, seconds), names))


def fuzz(name: str, seconds: int) -> int:
    """One target in a process of its own, for libFuzzer ends it; prints a line and gives the status."""
    room = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    (room / "found").mkdir()
    (room / "words").write_text("".join(f'"{word}"\n' for word in WORDS))
    limits = [f"-max_total_time={seconds}", f"-timeout={SLOWEST}", f"-max_len={LONGEST}", "-rss_limit_mb=2048"]
    words = [*limits, f"-artifact_prefix={room}/", f"-dict={room}/words", "-print_final_stats=1"]
    command = [sys.executable, __file__, "--only", name, *words, str(room / "found"), str(HERE / "corpus" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = dict(line.rsplit(":", 1) for line in done.stderr.splitlines() if line.startswith("stat::"))
    if done.returncode:
        print(f"{name}: an escape; the input is in {room}\n{done.stdout[-4000:]}{done.stderr[-4000:]}", flush=True)
        return 1
    inputs = said.get("stat::number_of_executed_units", "?").strip()
    print(f"{name:20} {inputs:>9} inputs, {len(list((room / 'found').iterdir()))} ways found, no escape", flush=True)
    shutil.rmtree(room)
    return 0


def only(name: str, words: list[str]) -> None:
    """Fuzz one target in this process; never returns."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "fixtures/tuf")]
    with atheris.instrument_imports(include=["harness.remote", "tuf", "securesystemslib"]):
        import fuzz_remote
    atheris.Setup([__file__, *words], lambda data: fuzz_remote.run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        only(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
