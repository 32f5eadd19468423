"""What the last job of a pipeline does, at its largest: a hundred JUnit files with 40,000 cases made one.

``python benchmarks/merging.py [--files N] [--cases N]``: the time and the peak memory of a process that only merges,
against that of one that only starts Python with the same modules; and how long it takes to write the pipelines of ten
kernels in three parts.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.sax.saxutils import quoteattr

MERGE = "import sys; from pathlib import Path; from kmt.ci import junit;" \
    " print(junit.merge(sorted(Path(sys.argv[1]).glob('*/junit.xml')), Path(sys.argv[1], 'all.xml')))"  # fmt: skip
START = "from kmt.ci import junit"
GENERATE = """
import time
from kmt.ci import github, gitlab
from kmt.ci.plan import Plan
plan = Plan(tuple(f"{n}.{n}" for n in range(10)), 3, "image", ("set up",), "", ("git",), ("a", "b"), True, "kmt ci")
begin = time.perf_counter()
github.pipeline(plan), gitlab.pipeline(plan)
print(time.perf_counter() - begin)
"""


def suite(cases, number):
    """As pytest and kmt write it: five properties a case, every hundredth failed with a page of text."""
    out = [f'<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="{cases}">']
    for n in range(cases):
        named = "".join(f'<property name="{k}" value="{k} of {n}"/>' for k in ("kernel", "release", "accel", "a", "b"))
        failed = f"<failure message={quoteattr('E < 1')}>{'line of a traceback &amp; more' * 100}</failure>"
        out.append(f'<testcase classname="tests.test_{number}" name="test_it[{n}]" time="0.1">'
                   f"<properties>{named}</properties>{failed if n % 100 == 0 else ''}</testcase>")  # fmt: skip
    return "".join([*out, "</testsuite></testsuites>"])


def measured(code, *words):
    """Seconds, peak MiB and output of a Python process."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--cases", type=int, default=40_000, help="of all files together")
    options = parser.parse_args()
    started, idle, _ = measured(START)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.files):
            path = Path(directory, f"job-{number:03}", "junit.xml")
            path.parent.mkdir()
            path.write_text(suite(options.cases // options.files, number))
        size = sum(path.stat().st_size for path in Path(directory).rglob("junit.xml"))
        seconds, peak, cases = measured(MERGE, directory)
    print(f"{options.files} files, {int(cases):,} cases, {size / 1e6:.0f} MB: {seconds:.2f} s, {peak:.0f} MiB;"
          f" Python and the modules alone: {started:.2f} s, {idle:.0f} MiB")  # fmt: skip
    _, _, spent = measured(GENERATE)
    print(f"both pipelines of ten kernels in three parts: {float(spent):.3f} s")


if __name__ == "__main__":
    main()
