"""``python -m harness``: every command of the table is there, wrong words and errors are said in a line."""

import importlib

import pytest

from harness import cli
from harness.cli import common
from harness.errors import SettingsError


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_module_with_options(name, capsys):
    module = importlib.import_module(f"harness.cli.{name}")
    assert callable(module.run)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"python -m harness {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["no-such-command"], ["trace", "--no-such-option"]])
def test_wrong_words_are_status_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "usage: python -m harness" in capsys.readouterr().err


def test_an_error_is_one_line_and_status_1(monkeypatch, capsys):
    monkeypatch.delenv("KMT_BPF_DIR", raising=False)
    assert cli.main(["trace", "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: where are the programs? (--bpf-dir DIR")
    assert said.err.count("\n") == 1


def test_settings_come_from_the_options_first(monkeypatch, tmp_path):
    monkeypatch.setenv("KMT_BPF_DIR", "/elsewhere")
    options = cli.parser().parse_args(["trace", "--bpf-dir", str(tmp_path), "--no-ring-buffer"])
    settings = common.bpf_settings(options)
    assert settings.bpf_dir == tmp_path
    assert not settings.enable_ringbuffers
    assert common.bpf_settings(cli.parser().parse_args(["trace"])).bpf_dir.name == "elsewhere"
    monkeypatch.delenv("KMT_BPF_DIR")
    with pytest.raises(SettingsError, match="where are the programs"):
        common.bpf_settings(cli.parser().parse_args(["trace"]))
