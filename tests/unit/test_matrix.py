from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt import matrix
from kmt.errors import ConfigError
from kmt.kernel import Version

HERE = Path("/somewhere/kernels.toml")

SMALL = """\
[[kernel]]
name = "5.10"
series = "5.10"
suites = ["bullseye"]
default = true

[[kernel]]
name = "6.1"
series = "6.1"
suites = ["bookworm"]
default = true

[[kernel]]
name = "6.12"
series = "6.12"
suites = ["trixie"]

[[kernel]]
name = "mine"
image = "boot/bzImage"
modules = "mods"
"""


def names(*patterns, text=SMALL):
    return [row.name for row in matrix.parse(text, HERE).select(patterns)]


def test_the_packaged_catalogue_has_five_default_rows_that_an_archive_serves():
    rows = matrix.load().select(["default"])
    assert len(rows) == 5
    assert all(row.suites and row.series == row.name for row in rows)
    newest = matrix.load().select(["newest"])
    assert newest == [max(rows, key=lambda row: Version.parse(row.series))]


def test_a_kernel_of_no_archive_is_a_row_too():
    (row,) = matrix.load().select(["5.15"])
    assert not row.suites
    assert not row.default
    assert row.note


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["6.12", "5.10"], ["6.12", "5.10"]),
        (["6.12,5.10", "6.12"], ["6.12", "5.10"]),
        (["v6.1"], ["6.1"]),
        (["6.*"], ["6.1", "6.12"]),
        (["default"], ["5.10", "6.1"]),
        (["newest", "all"], ["6.12", "5.10", "6.1", "mine"]),
        ([" 5.10 , "], ["5.10"]),
        ([], []),
    ],
)
def test_words_choose_rows_in_the_order_asked_for_and_each_once(patterns, chosen):
    assert names(*patterns) == chosen


@given(
    st.lists(st.sampled_from(["5.10", "6.1", "6.12", "mine", "6.*", "all", "default", "newest", "v5.10"]), max_size=6)
)
def test_lists_and_repeated_options_mean_the_same(words):
    assert names(*words) == names(",".join(words))
    assert len(set(names(*words))) == len(names(*words))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("6.2", "did you mean 6.12 or 6.1?"),
        ("5.1", "5.10"),
        ("bzImage", "a path to an image needs a slash"),
        ("7.*", "6.1"),
    ],
)
def test_an_unknown_kernel_names_its_neighbours(word, hint):
    with pytest.raises(ConfigError, match="no kernel") as caught:
        names(word)
    assert hint in str(caught.value)
    assert str(HERE) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("./vmlinuz-6.6.9-custom", "6.6.9-custom"),
        ("/src/linux/arch/x86/boot/bzImage", "boot-bzImage"),
        ("/tmp/a b/[x]", "a-b--x"),
        ("~/linux/", "linux"),
    ],
)
def test_a_path_is_a_row_of_its_own(path, name):
    (row,) = matrix.parse(SMALL, HERE).select([path])
    assert row.name == name
    assert row.image == Path(path)


def test_two_images_of_one_name_stay_apart_from_each_other_and_from_rows():
    chosen = matrix.parse(SMALL, HERE).select(["a/vmlinuz-6.1", "b/vmlinuz-6.1", "a/vmlinuz-6.1", "6.1"])
    assert [row.name for row in chosen] == ["6.1-2", "6.1-3", "6.1"]


def test_paths_of_rows_are_relative_to_the_catalogue():
    text = SMALL + 'btf = "x.btf"\narchive = { uri = "http://localhost/ubuntu", keyring = "keys/u.gpg" }\n'
    (row,) = matrix.parse(text, HERE).select(["mine"])
    assert (row.image, row.modules, row.btf) == tuple(HERE.parent / p for p in ("boot/bzImage", "mods", "x.btf"))
    assert row.archive == matrix.Source("http://localhost/ubuntu", HERE.parent / "keys/u.gpg")


GOOD = '[[kernel]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('[[kernel]]\nname = "a"\n\nsuits = []\n', 4, "unknown key 'suits' (did you mean 'suites'?)"),
        (GOOD + '[[kernel]]\nname = "b"\n# x\nseriess = "6.1"\n', 6, "did you mean 'series'?"),
        (GOOD + "default = 1\n", 3, "default must be true or false, not 1"),
        (GOOD + "suites = 'x'\n", 3, "suites must be a list of strings"),
        (GOOD + "suites = [1]\n", 3, "suites must be a list of strings"),
        (GOOD + "flavour = true\n", 3, "flavour must be a string"),
        (GOOD + "image = 3\n", 3, "image must be a path"),
        (GOOD + "archive = 'x'\n", 3, "archive must be a table"),
        (GOOD + 'archive = { url = "x" }\n', 3, "unknown key 'url' (did you mean 'uri'?)"),
        (GOOD + '[kernel.archive]\nuri = "x"\nkeyrin = "y"\n', 5, "did you mean 'keyring'?"),
        (GOOD + 'archive = { uri = "x" }\n', 3, "keyring is missing"),
        ('\n[[kernel]]\nseries = "6.1"\n', 2, "name is missing"),
        (GOOD + 'series = "6"\n', 3, "series must be like '6.1', not '6'"),
        (GOOD + 'series = "6.1.9"\n', 3, "series must be like '6.1'"),
        (GOOD + 'suites = ["x"]\n', 3, "needs a series"),
        (GOOD + 'series = "6.1"\nsuites = ["x"]\nimage = "y"\n', 5, "not both"),
        (GOOD + GOOD, 4, "a second row is named 'a'"),
        ('[[kernel]]\nname = "all"\n', 2, "'all' cannot be a row's name"),
        ('[[kernel]]\nname = "host"\n', 2, "'host' cannot be a row's name"),
        ('[[kernel]]\nname = "a b"\n', 2, "'a b' cannot be a row's name"),
        ('[[kernal]]\nname = "a"\n', 1, "unknown key 'kernal' (did you mean 'kernel'?)"),
        ('# x\n[kernel]\nname = "a"\n', 2, "must be an array of tables"),
        ('[[kernel]]\nname = "a\n', 2, "Illegal character"),
        ("[[kernel]]\nname = 'a'\n[[kernel", 3, "at end of document"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text, line, said):
    with pytest.raises(ConfigError) as caught:
        matrix.parse(text, HERE)
    assert str(caught.value).startswith(f"{HERE}:{line}: ")
    assert said in str(caught.value)


@given(number=st.integers(0, 5), blank=st.integers(0, 3), key=st.from_regex(r"x[a-z]{1,8}", fullmatch=True))
def test_the_line_is_right_wherever_the_key_stands(number, blank, key):
    rows = [f'[[kernel]]\nname = "r{i}"\nnote = "{key} = 1"\n' + "\n" * blank for i in range(6)]
    rows[number] += f"{key} = 1\n"
    text = "".join(rows)
    with pytest.raises(ConfigError) as caught:
        matrix.parse(text, HERE)
    assert f":{text.splitlines().index(f'{key} = 1') + 1}: unknown key" in str(caught.value)


@given(st.text())
def test_any_text_is_a_catalogue_or_a_typed_error(text):
    try:
        said = f"{matrix.parse(text, HERE).path}:"
    except ConfigError as error:
        said = error.message
    assert said.startswith(f"{HERE}:")


def test_a_catalogue_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        matrix.load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.toml"):
        matrix.load(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["5.15-simulated"], ["5.15-simulated"]),
        (["v6.1-simulated", "6.1"], ["6.1-simulated", "6.1"]),
        (["5.11-simulated"], ["5.11-simulated"]),
        (["6.1?-simulated"], [f"6.{n}-simulated" for n in (12, 16, 17, 18)]),
        (["newest-simulated"], ["7.3-simulated"]),
    ],
)
def test_any_word_and_any_version_can_be_asked_for_simulated(words, names):
    rows = matrix.load().select(words)
    assert [row.name for row in rows] == names
    for row in rows:
        assert row.simulated == row.name.endswith("-simulated")
        if row.simulated:
            assert row.series == row.name.removesuffix("-simulated")
            assert (row.suites, row.image) == ((), None)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("./bzImage-simulated", "only versions can be simulated"),
        ("5-simulated", "no kernel '5'"),
        ("-simulated", "no kernel ''"),
    ],
)
def test_what_has_no_version_cannot_be_simulated(word, said):
    with pytest.raises(ConfigError, match=said):
        matrix.load().select([word])


def test_no_row_may_be_named_as_if_it_were_simulated():
    with pytest.raises(ConfigError, match="cannot be a row's name"):
        matrix.parse('[[kernel]]\nname = "6.1-simulated"\n', HERE)


def test_a_box_brings_its_kernel():
    (row,) = matrix.parse('[[kernel]]\nname = "mine"\nbox = "debian/trixie64"', HERE).rows
    assert (row.box, row.runs_at, row.simulated) == ("debian/trixie64", "it is in the box debian/trixie64", False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('box = "../x"', r"kernels.toml:3: box must be a box's name, like 'debian/trixie64', not '../x'"),
        ('box = "-f"', "box must be a box's name"),
        ('box = "kmt-0123456789abcdef"', "kmt-0123456789abcdef is what boxes that kmt makes are called"),
        ("box = 3", "box must be a string, not 3"),
        ('box = "a"\nssh = "board"', "a row with box has the kernel of its box, and no ssh"),
        ('box = "a"\nseries = "6.1"\nsuites = ["bookworm"]', "and no suites"),
        ('box = "a"\nimage = "bzImage"', "and no image"),
        ('box = "a"\npython = "python3"', "python is for rows with ssh"),
    ],
)
def test_what_does_not_belong_to_a_box(line, said):
    with pytest.raises(ConfigError, match=said):
        matrix.parse(f'[[kernel]]\nname = "mine"\n{line}', HERE)
