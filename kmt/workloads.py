"""C programs that a project's tests run in guests: ``[tool.kmt] workloads``, compiled once, in ``$KMT_BPF_DIR/bin``.

Laws: a program is one file and stands by itself (its C library is in it), for guests have neither compiler nor the
headers of the host; a warning is an error; named by its content and the exact compiler, so only a change compiles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kmt import recipes
from kmt.config import Config, matched
from kmt.diagnostics import dependencies, explain
from kmt.errors import BuildError, ConfigError
from kmt.paths import cache, digest, published
from kmt.roots.compiler import Compiler, native

SUFFIX = ".c"


def survey(config: Config) -> dict[str, Path]:
    """The sources by name. Raises ConfigError for settings that match nothing, BuildError for a clash."""
    found: dict[str, Path] = {}
    for source in matched(config.root, "workloads", config.workloads):
        if source.suffix != SUFFIX or source.name.endswith(".bpf.c"):
            raise ConfigError(f"[tool.kmt] workloads: {source} is no C program NAME{SUFFIX}")
        if source.stem in found:
            raise BuildError(f"{found[source.stem]} and {source} would both be bin/{source.stem}")
        found[source.stem] = source
    return found


def compiled(root: Path, sources: Mapping[str, Path], compiler: Compiler) -> dict[str, Path]:
    """The executables by name, made where they are not made yet. Raises BuildError with the compiler's words."""
    store, made = cache("objects"), {}
    for name, source in sources.items():
        relative = os.path.relpath(source, root)
        words = recipes.workload(relative, "OUTPUT", target=native())
        target = store / f"{digest(compiler.identity, source.read_bytes(), *words)}.bin"
        if not target.is_file():
            _compile(root, relative, compiler, target)
        made[name] = target
    return made


def _compile(root: Path, source: str, compiler: Compiler, target: Path) -> None:
    with published(target) as work:
        deps = work.with_name("deps")
        words = [*recipes.workload(source, str(work), target=native()), "-MMD", "-MF", str(deps)]
        done = compiler.exec(words, cwd=root, writable=[work.parent], check=False)
        if done.status:
            raise BuildError(f"{source} does not compile:\n{explain(done.stderr, done.status)}")
        inside = [name for name in dependencies(deps.read_text())[1:] if (root / name).is_relative_to(root)]
        if inside:
            raise BuildError(f"{source} includes {inside[0]}", hint="a workload is one file: put it all there")
