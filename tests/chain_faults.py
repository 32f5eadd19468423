"""Real faults of each stage of the fallback chain: a spoilt tree of built programs, directories that are hidden."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from mounts import hidden

from harness.ebpf import embedded

MODULE = "shared-libraries"
# A helper's number, in a call of it: bpf_get_current_pid_tgid, and one that no kernel has.
CALL, REJECTED = bytes.fromhex("850000000e000000"), bytes.fromhex("85000000ffffff7f")
FILE_FAULTS = (
    "missing",
    "a directory",
    "group may write",
    "of another owner",
    "truncated",
    "empty",
    "of another machine",
    "rejected by the verifier",
)


def spoil(path, how):
    """Make an object unusable, one way or another."""
    image = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "a directory":
        path.unlink()
        path.mkdir()
    elif how == "group may write":
        path.chmod(0o664)
    elif how == "of another owner":
        os.chown(path, 1000, 0)
    else:
        changed = {
            "truncated": image[: len(image) // 2],
            "empty": b"",
            "of another machine": image[:18] + b"\x3e\0" + image[20:],
            "rejected by the verifier": image.replace(CALL, REJECTED),
        }[how]
        assert changed != image
        path.write_bytes(changed)


def break_core(place, how):
    if how == "no BTF anywhere":
        (place / "co-re/btf" / embedded.COLLECTION).unlink()
        return ["/sys/kernel/btf", "/lib/modules"]
    spoil(place / f"co-re/{MODULE}.o", how)
    return []


def break_runtime(place, how):
    """Where the build has compiled it already, what is there is spoilt; there is never a compiler."""
    compiled = next((place / "runtime/compiled").glob(f"{MODULE}-*.o"), None)
    if how == "headers absent":
        return ["/usr/src", "/lib/modules"]
    if how == "headers of another kernel":
        return ["/usr/src", "/lib/modules", "other headers"]
    if how == "source changed":
        with (place / f"runtime/{MODULE}.bpf.c").open("a") as file:
            file.write("\n")
    elif how == "header changed":
        with (place / f"runtime/{MODULE}.h").open("a") as file:
            file.write("\n")
    elif how == "header others may write":
        (place / "runtime/include/interface_types.h").chmod(0o666)
    elif how == "no manifest":
        (place / "runtime/manifest.json").unlink()
    elif how == "no output and no clang":
        shutil.rmtree(place / "runtime/compiled", ignore_errors=True)
    elif compiled is not None:
        spoil(compiled, "rejected by the verifier" if how == "output rejected" else how)
        if how == "output rejected":
            digest = hashlib.sha256(compiled.read_bytes()).hexdigest()
            compiled.with_name(f"{compiled.name}.sha256").write_text(digest)
    return []


def break_prebuilt(place, how):
    path = place / f"{MODULE}.o"
    if how == "of another kernel":
        release = os.uname().release.encode()
        path.write_bytes(path.read_bytes().replace(release, release[:-1] + b"x"))
    elif how == "the CO-RE one":
        shutil.copyfile(place / f"co-re/{MODULE}-debug.o", path)
    else:
        spoil(path, how)
    return []


FAULTS = {
    "C": (break_core, ("no BTF anywhere", *FILE_FAULTS)),
    "R": (
        break_runtime,
        (
            *("headers absent", "headers of another kernel", "source changed", "header changed", "no manifest"),
            *("header others may write", "no output and no clang", "output rejected", "truncated", "group may write"),
        ),
    ),
    "P": (break_prebuilt, ("of another kernel", "the CO-RE one", *FILE_FAULTS)),
}


def copied(bpf_dir, place):
    """What the module needs of the tree, to be spoilt."""
    shutil.copytree(bpf_dir, place, ignore=lambda _, names: [n for n in names if n.endswith(".o") and MODULE not in n])
    (place / "runtime/compiled").mkdir(exist_ok=True)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755)
    return place


class Spoilable:
    """A copy of a tree that a situation may spoil; only what was touched is made anew for the next one."""

    def __init__(self, pristine, place):
        self.pristine, self.place = pristine, place
        self._fresh = {}

    def restore(self):
        """As it was, whatever became of it. The copies' times of change tell, which no program can set."""
        self.place.mkdir(exist_ok=True)
        now = stamps(self.place)
        wanted = [path.relative_to(self.pristine) for path in sorted(self.pristine.rglob("*"))]
        for path in sorted(now.keys() - set(wanted), reverse=True):
            remove(self.place / path)
        for path in wanted:
            here, there = self.place / path, self.pristine / path
            if there.is_dir():
                here.mkdir(parents=True, exist_ok=True)
                shutil.copystat(there, here)
            elif path not in now or now[path] != self._fresh.get(path):
                remove(here)
                shutil.copy2(there, here)
        self._fresh = stamps(self.place)


def stamps(place):
    """What tells that a path was changed: the time of that is only as fine as the kernel's clock ticks."""
    states = {path.relative_to(place): path.lstat() for path in place.rglob("*")}
    return {path: (s.st_ino, s.st_ctime_ns, s.st_mode, s.st_uid, s.st_size) for path, s in states.items()}


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def without(directories, release):
    """These hidden from this thread."""
    with contextlib.ExitStack() as stack:
        real = [d for d in directories if d.startswith("/")]
        if real:
            stack.enter_context(hidden(*real))
        if "other headers" in directories:
            generated = Path(f"/usr/src/linux-headers-{release}/include/generated")
            generated.mkdir(parents=True)
            (generated / "utsrelease.h").write_text('#define UTS_RELEASE "6.6.6-other"\n')
        yield
