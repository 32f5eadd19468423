"""The arrows between packages and modules, as the design draws them; each rule is checked on broken code too."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kmt", "harness")

# fmt: off
EFFECTS = {
    "asyncio", "ctypes", "fcntl", "filelock", "glob", "grpc", "http", "multiprocessing", "os", "pexpect",
    "platformdirs", "psutil", "pty", "random", "secrets", "select", "selectors", "shutil", "signal", "socket",
    "ssl", "subprocess", "tempfile", "termios", "threading", "time", "urllib",
}
# fmt: on
"""Modules that give a pure one a clock, files, processes, chance or a network."""


def modules():
    """Every module of ours as (dotted name, path)."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts).removesuffix(".__init__"), path))
    return found


MODULES = modules()


def imports(source, name):
    """Absolute names of all that a module imports, inside functions too; TYPE_CHECKING blocks are left out."""
    package = name.split(".")[:-1]
    found = set()
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def _nodes(node):
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child)


def within(names, *packages):
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in packages)}


def is_pure(source):
    return (ast.get_docstring(ast.parse(source)) or "").startswith("(pure")


@functools.cache
def pure_modules():
    """Those that a pure one may import."""
    return {n for n, path in MODULES if is_pure(path.read_text()) or n in VALUES}


def impurities(source, name):
    """What has effects in a pure module, outside the functions that its first line excepts.

    That is: effects of the standard library that it uses, and modules of ours that are not pure.
    """
    used = imports(source, name)
    pure = pure_modules()
    ours = {n for n, _ in MODULES} & used
    # "from kmt.x import y" names kmt.x and kmt.x.y; a package on the way to a module is not what is meant.
    ours = {n for n in ours if not any(other.startswith(f"{n}.") for other in used)}
    return effects(source) | (ours - pure)


def effects(source):
    """Uses of ``EFFECTS`` outside the excepted functions: ``os.stat``, ``time.time``, ``shutil`` ..."""
    tree = ast.parse(source)
    first = (ast.get_docstring(tree) or "").split("\n\n")[0]
    excepted = {word.split(".")[-1] for word in re.findall(r"``([\w.]+)``", first.partition(")")[0])}
    bound, uses = {}, set()
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            bound |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            bound |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in _outside(tree, excepted):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        head, _, rest = text.partition(".")
        if head in bound and bound[head].split(".")[0] in EFFECTS:
            uses.add(".".join(filter(None, [bound[head], rest])))
    return uses - HARMLESS


# fmt: off
HARMLESS = {
    "os.fsdecode", "os.fsencode", "os.PathLike", "os.major", "os.minor", "os.makedev", "os.stat_result",
    "socket.inet_ntop", "socket.AF_INET", "socket.AF_INET6",
}
# fmt: on
"""Values in, values out."""


def _outside(node, excepted):
    """All nodes but those of the excepted functions, and but for ``a`` and ``a.b`` of ``a.b.c``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.Attribute) and isinstance(child, ast.Attribute | ast.Name):
            continue
        if not (isinstance(child, ast.FunctionDef) and child.name in excepted):
            yield from _outside(child, excepted)


VALUES = {
    "kmt.errors", "harness.errors", "kmt.guest.wire",
    "harness.remote.wire.config_pb2", "harness.remote.wire.service_pb2",
}  # fmt: skip
"""Types without behaviour, which pure modules share with the others."""


def test_the_modules_are_found():
    names = {name for name, _ in MODULES}
    assert {"kmt.results", "kmt.guest.wire", "kmt", "harness"} <= names


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[n for n, _ in MODULES])
def test_arrows(name, path):
    used = imports(path.read_text(), name)
    if name.startswith("harness"):
        assert not within(used, "kmt"), "harness never imports kmt"
    elif not name.startswith("kmt.simulator"):
        assert not within(used, "harness"), "only the simulator knows the harness"
    if name.startswith("kmt.guest."):
        assert within(used, "kmt") == within(used, "kmt.guest"), "only kmt/guest travels into guests"
        if name != "kmt.guest.far":  # which is there before its neighbours are
            assert "from kmt" not in path.read_text(), "what travels imports its neighbours by '.' alone"


@pytest.mark.parametrize(("name", "path"), [m for m in MODULES if m[0].startswith("kmt")], ids=lambda v: str(v))
def test_only_one_module_starts_processes(name, path):
    if name != "kmt.proc" and not name.startswith("kmt.guest"):
        assert starts(path.read_text()) == set()


def starts(source):
    """Calls that start a process. (``subprocess.Popen`` as a type and ``subprocess.PIPE`` are none.)"""
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return {call for call in calls if re.fullmatch(STARTS, call)}


STARTS = (
    r"subprocess\.(run|call|check_call|check_output|Popen|getoutput|getstatusoutput)|multiprocessing\..*"
    r"|os\.(system|popen|fork|forkpty|exec\w+|spawn\w+|posix_spawnp?)|pty\.(fork|spawn)"
)


@pytest.mark.parametrize(("name", "path"), [m for m in MODULES if is_pure(m[1].read_text())], ids=lambda v: str(v))
def test_pure_modules_import_nothing_with_effects(name, path):
    assert impurities(path.read_text(), name) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""(pure) x"""\nimport os.path\nos.path.exists("x")', {"os.path.exists"}),
        ('"""(pure) x"""\nimport os\nos.fsdecode(b"x")', set()),
        ('"""(pure, but for ``f``) x"""\nfrom os import stat\ndef f(): stat("x")\ndef g(): pass', set()),
        ('"""(pure, but for ``f``) x"""\nfrom os import stat\ndef f(): pass\ndef g(): stat("x")', {"os.stat"}),
        ('"""(pure) x"""\nfrom kmt import proc', {"kmt.proc"}),
        ('"""(pure) x"""\nfrom kmt.results import Outcome', set()),
        ('"""(pure) x"""\ndef f():\n import time\n time.time()', {"time.time"}),
    ],
)
def test_the_rule_sees_impure_imports(source, found):
    assert impurities(source, "kmt.pretended") == found


def test_the_rule_sees_processes():
    assert starts("subprocess.run(['ls'])\nos.fork()\nx: subprocess.Popen\nproc.run()") == {"subprocess.run", "os.fork"}


def test_relative_imports_are_followed():
    assert "kmt.guest.wire" in imports("from .wire import Kind", "kmt.guest.agent")
    assert "kmt.proc" in imports("from .. import proc", "kmt.guest.agent")
