"""Pipelines from the matrix: valid by the providers' own schemas, stable, and those of this repository not drifted."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kmt import matrix
from kmt.ci import github, gitlab, plan
from kmt.ci.plan import Plan
from kmt.commands import pipelines
from kmt.errors import ConfigError
from kmt.plugin.parts import Part

ROOT = Path(__file__).parents[2]
PIPELINES = {"gitlab": gitlab.pipeline, "github": github.pipeline}
SCHEMAS = {"gitlab": "vendor.gitlab-ci", "github": "vendor.github-workflows"}
OURS = {"gitlab": ".gitlab/kernels.yml", "github": ".github/workflows/kernels.yml"}
KERNELS = tuple(f"{n}.{n}" for n in range(10))
PLAN = Plan(
    KERNELS,
    3,
    "debian:trixie",
    ("./set up --it",),
    "",
    ("git", "qemu"),
    ("pyproject.toml", "a.lock"),
    True,
    "kmt ci",
)


def valid(path, provider):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[provider], str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("provider", PIPELINES)
@pytest.mark.parametrize(
    "change", [{}, {"parts": 1}, {"runner": "kvm", "host": False}, {"kernels": ("6.1",), "setup": ("a: 'b' #c",)}]
)
def test_pipelines_are_valid_by_the_providers_schema(provider, change, tmp_path):
    text = PIPELINES[provider](dataclasses.replace(PLAN, **change))
    (tmp_path / "made.yml").write_text(text)
    ok, said = valid(tmp_path / "made.yml", provider)
    assert ok, said


@pytest.mark.parametrize("provider", PIPELINES)
def test_the_schema_sees_what_is_wrong(provider, tmp_path):
    document = yaml.safe_load(PIPELINES[provider](PLAN))
    job = document["jobs"]["kernel"] if provider == "github" else document["kernel"]
    job["retry" if provider == "gitlab" else "steps"] = {"max": "often"}
    (tmp_path / "made.yml").write_text(yaml.safe_dump(document))
    assert not valid(tmp_path / "made.yml", provider)[0]


@pytest.mark.parametrize("provider", OURS)
def test_this_repositorys_pipelines_are_what_the_matrix_makes_now(provider):
    path = OURS[provider]
    made = "\n".join(pipelines.generate(ROOT, provider)) + "\n"
    body = (ROOT / path).read_text().split("\n", 1)[1]
    assert body == made.split("\n", 1)[1], f"./inv kmt.ci --provider={provider} --output={path}"
    assert f"--provider={provider} --output={path}" in (ROOT / path).read_text().split("\n", 1)[0]


def test_the_top_pipeline_of_gitlab_triggers_the_generated_one():
    assert valid(ROOT / ".gitlab-ci.yml", "gitlab")[0]
    trigger = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())["kernels"]["trigger"]
    assert trigger == {"include": OURS["gitlab"], "strategy": "depend"}


def test_both_providers_fuzz_on_a_schedule_with_the_task_that_there_is():
    assert valid(ROOT / ".github/workflows/fuzz.yml", "github")[0]
    github = yaml.safe_load((ROOT / ".github/workflows/fuzz.yml").read_text())
    gitlab = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())["fuzz"]
    assert github["on"]["schedule"]
    assert gitlab["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
    for script in (github["jobs"]["fuzz"]["steps"][-1]["run"], "\n".join(gitlab["script"])):
        assert script.splitlines()[-1] == "./inv fuzz --seconds=600"
    done = subprocess.run([ROOT / "inv", "--help", "fuzz"], capture_output=True, text=True, timeout=60)
    assert "--seconds" in done.stdout


@pytest.mark.parametrize("provider", PIPELINES)
def test_every_kernel_and_part_has_its_job_and_the_verdict_expects_them(provider):
    document = yaml.safe_load(PIPELINES[provider](PLAN))
    if provider == "github":
        job, last = document["jobs"]["kernel"], document["jobs"]["verdict"]
        found = job["strategy"]["matrix"]["kernel"], job["strategy"]["matrix"]["part"]
        script = "\n".join(step.get("run", "") for step in job["steps"])
        final = "\n".join(step.get("run", "") for step in last["steps"])
        assert last["needs"] == ["kernel", "host"]
        assert last["if"] == "always()"
        assert '[ "$status" -eq 6 ]' in script
    else:
        job, last = document["kernel"], document["verdict"]
        (found,) = ((m["KERNEL"], m["PART"]) for m in job["parallel"]["matrix"])
        script, final = "\n".join(job["script"]), "\n".join(last["script"])
        assert job["retry"]["exit_codes"] == [6]
        assert "script_failure" not in job["retry"]["when"]
        assert last["when"] == "always"
        assert document["stages"].index(last["stage"]) > document["stages"].index(job["stage"])
    assert tuple(tuple(values) for values in found) == (KERNELS, ("1", "2", "3"))
    host = document["jobs"]["host"] if provider == "github" else document["host"]
    assert '.venv/bin/python -m pytest "--junitxml=kmt-results/host/junit.xml"' in str(host).replace("\\'", "'")
    assert '"--kernel=$KERNEL"' in script
    assert '"--kernel-part=$PART/3"' in script
    assert plan.NO_KVM in script
    assert f"--kernels={','.join(KERNELS)}" in final
    assert "--parts=3" in final
    assert "--host" in final
    assert "qemu" not in str(last), "the verdict boots nothing"


def shell(script, cwd, **programs):
    """Run it as a job would, with these programs in place of the real ones."""
    (cwd / "bin").mkdir()
    for name, body in programs.items():
        path = cwd / "bin" / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    env = {"PATH": f"{cwd / 'bin'}:/usr/bin:/bin"}
    return subprocess.run(["sh", "-e", "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("failures", "status", "pauses"), [(0, 0, []), (1, 0, ["15"]), (9, 6, ["15", "30"])])
def test_packages_are_tried_for_again_and_an_archive_that_stays_away_is_infrastructure(
    tmp_path, failures, status, pauses
):
    apt = f'echo x >>tried; [ "$1" = install ] || [ "$(wc -l <tried)" -gt {failures} ]'
    done = shell("\n".join(plan.system(["git"])), tmp_path, apt_get=apt, sleep="echo $1 >>slept")
    assert done.returncode == status, done.stderr
    slept = (tmp_path / "slept").read_text().split() if pauses else []
    assert slept == pauses


@pytest.mark.parametrize("status", [0, 1, 6])
def test_the_hosts_job_keeps_its_status_and_ends_with_it(tmp_path, status):
    venv = tmp_path / ".venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").write_text(f"#!/bin/sh\nexit {status}\n")
    (venv / "python").chmod(0o755)
    assert shell(plan.host_tests(), tmp_path).returncode == status
    assert (tmp_path / plan.RESULTS / plan.HOST / plan.STATUS).read_text() == f"{status}\n"


names = st.from_regex(matrix._NAME, fullmatch=True)


@given(st.lists(names, min_size=1, max_size=4, unique=True), st.integers(1, 5), st.sampled_from(sorted(PIPELINES)))
def test_any_names_of_kernels_are_data_and_the_text_is_stable(kernels, parts, provider):
    wanted = dataclasses.replace(PLAN, kernels=tuple(kernels), parts=parts)
    text = PIPELINES[provider](wanted)
    assert text == PIPELINES[provider](wanted)
    document = yaml.safe_load(text)
    job = document["jobs"]["kernel"] if provider == "github" else document["kernel"]
    matrix_of_it = (
        job["strategy"]["matrix"]["kernel"] if provider == "github" else job["parallel"]["matrix"][0]["KERNEL"]
    )
    assert matrix_of_it == kernels
    assert all(isinstance(name, str) for name in matrix_of_it), "6.10 is no number"


@pytest.mark.parametrize("provider", PIPELINES)
def test_scripts_are_what_a_posix_shell_takes(provider):
    document = yaml.safe_load(PIPELINES[provider](PLAN))
    if provider == "github":
        scripts = [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    else:
        jobs = [document["kernel"], document["host"], document["verdict"]]
        scripts = ["\n".join([*job["before_script"], *job["script"], *job.get("after_script", ())]) for job in jobs]
    for script in scripts:
        done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"provider": "jenkins"}, "one of gitlab, github"),
        ({"provider": "gitlab", "parts": 0}, "--split is 0"),
        ({"provider": "github", "parts": 101}, "--split is 101"),
        ({"provider": "gitlab", "kernels": ["all"], "parts": 100}, "gitlab takes 200"),
        ({"provider": "gitlab", "kernels": ["9.99"]}, "no kernel '9.99'"),
        ({"provider": "gitlab", "kernels": ["./vmlinuz"]}, "is a file of this machine"),
        ({"provider": "gitlab", "output": "/proc/no/such.yml"}, "name another file"),
    ],
)
def test_words_that_make_no_pipeline_are_typed_errors(words, said):
    with pytest.raises(ConfigError, match=said):
        pipelines.generate(ROOT, **words)


def test_a_project_with_a_lock_and_a_catalogue_of_its_own_keys_its_cache_by_them(tmp_path):
    (tmp_path / "mine.toml").write_text('[[kernel]]\nname = "mine"\nimage = "bzImage"\ndefault = true\n')
    (tmp_path / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "mine.toml"\nci_runner = "big"\n')
    document = yaml.safe_load("\n".join(pipelines.generate(tmp_path, "gitlab")))
    assert document["kernel"]["cache"]["key"]["files"] == ["pyproject.toml", "mine.toml"]
    assert document["kernel"]["tags"] == ["big"]
    assert document["kernel"]["parallel"]["matrix"][0]["KERNEL"] == ["mine"]


# Parts


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), max_size=20), st.integers(1, 7))
def test_every_module_is_in_exactly_one_part_and_no_part_is_much_larger(modules, parts):
    divided = [Part(number, parts).modules(modules) for number in range(1, parts + 1)]
    assert sorted(name for part in divided for name in part) == sorted(modules)
    even = sum(modules.values()) / parts + max(modules.values(), default=0)
    assert all(sum(modules[name] for name in part) <= even for part in divided)
    shuffled = dict(sorted(modules.items(), reverse=True))
    assert [Part(number, parts).modules(shuffled) for number in range(1, parts + 1)] == divided


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/2", "1/2/3", " 1/2", "1/12345", "²/3"])
def test_what_is_no_part_is_said(text):
    with pytest.raises(ConfigError, match="write 2/3"):
        Part.parse(text)


# The command


def test_a_foreign_project_writes_its_pipeline_by_the_module(tmp_path):
    command = [sys.executable, "-m", "kmt", "ci", "--provider", "github", "--kernels", "6.*", "--split", "2"]
    done = subprocess.run([*command, "--output", "a/b.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "a" / "b.yml").read_text()
    again = "python -m kmt ci --provider=github '--kernels=6.*' --split=2 --output=a/b.yml"
    assert text.startswith(f"# Written by `{again}`: ")
    assert valid(tmp_path / "a" / "b.yml", "github")[0]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
    assert printed.split("\n", 1)[1] == text.split("\n", 1)[1]
    assert not (tmp_path / "pyproject.toml").exists()
