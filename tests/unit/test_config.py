import pytest

from kmt import config
from kmt.errors import ConfigError


def load(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text)
    return config.load(tmp_path)


def test_a_project_without_a_table_gets_the_defaults(tmp_path):
    assert config.load(tmp_path).kernels == ("default",)
    assert load(tmp_path, "[project]\nname='x'\n").timeout == 600


def test_values_are_read(tmp_path):
    got = load(tmp_path, "[tool.kmt]\nkernels=['6.1']\ntimeout=5\n")
    assert got.kernels == ("6.1",)
    assert got.timeout == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.kmt]\nkernel=['6.1']\n", "did you mean 'kernels'"),
        ("[tool.kmt]\nkernels='6.1'\n", "must be a list of strings"),
        ("[tool.kmt]\ntimeout=true\n", "must be a whole number"),
        ("[tool.kmt\n", "pyproject.toml"),
        ("[tool]\nkmt=3\n", "must be a table"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
