"""The tables of ``watch``: hostile names, many rows, nothing to show."""

from rich.console import Console

from harness.cli.watch import drawn
from harness.watcher.identity import PathIdentifier
from harness.watcher.registry import TracedFile
from harness.watcher.snapshot import RuleHits, Snapshot
from harness.watcher.tls import Traffic


def shown(now, *notes, **more):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(drawn(now, "CO-RE", list(notes), **more))
    return console.export_text()


def file(number, path, pids):
    id = PathIdentifier(8, number)
    return id, TracedFile(id, path, tuple(pids))


def test_empty_tables_are_left_out():
    assert shown(Snapshot(), "", "a note").split() == ["CO-RE", "a", "note"]


def test_what_is_held_most_comes_first_and_names_are_harmless():
    files = dict([file(1, "/lib/a.so", [1]), file(2, "/lib/[red]\x1b[2J\nb\udcff.so", range(1, 30))])
    text = shown(
        Snapshot(files, {PathIdentifier(8, 3): "/x\ny"}, {99999999: Traffic(5, 7)}, {"p[a]": RuleHits(1, 2, 3)})
    )
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines[2] == [r"/lib/[red]\x1b[2J\nb\udcff.so", "0x8:2", "29", "1", "2", "3", "4", "5", "6", "7", "8", "…"]
    assert lines[3] == ["/lib/a.so", "0x8:1", "1", "1"]
    assert ["(ended)", "99999999", "5", "7"] in lines
    assert ["p[a]", "1", "2", "3"] in lines
    assert [r"/x\ny", "0x8:3"] in lines


def test_names_are_those_of_the_proc_root(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "comm").write_bytes(b"a \x1bname\n")
    text = shown(Snapshot(traffic={7: Traffic(5, 6), 8: Traffic(3, 4)}), proc_root=tmp_path)
    assert [line.split()[-3:] for line in text.splitlines() if r"a \x1bname" in line] == [["7", "5", "6"]]
    assert [line.split() for line in text.splitlines() if "(ended)" in line] == [["(ended)", "8", "3", "4"]]


def test_many_rows_are_cut_and_counted():
    text = shown(Snapshot(dict(file(n, f"/lib/{n}.so", [1]) for n in range(50))))
    assert text.count("/lib/") == 20
    assert "30 more" in text
