"""Bar charts of measured figures by rich: on the terminal, and as an SVG for the README."""

import io
import re

from rich.bar import Bar
from rich.console import Console
from rich.table import Table


def bars(title, values, unit):
    """A table of named values with a bar each."""
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    table.add_column("")
    table.add_column(unit, justify="right")
    table.add_column("", width=50)
    largest = max(values.values())
    for name, value in values.items():
        table.add_row(name, f"{value:.2f}", Bar(largest, 0, value, width=50, color="cyan"))
    return table


def show(drawing):
    """Print it."""
    Console().print(drawing)


def save(drawing, path, title):
    """Write it as an SVG."""
    console = Console(record=True, width=90, file=io.StringIO(), force_terminal=True)
    console.print(drawing)
    drawn = console.export_svg(title=title)
    path.write_text(re.sub(r"@font-face \{[^}]*\}", "", drawn))  # it would fetch fonts from somewhere
