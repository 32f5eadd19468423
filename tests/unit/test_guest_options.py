from pathlib import Path

from kmt.plugin.options import travelling_options


class Config:
    """As much of pytest's as is asked."""

    rootpath = Path(__file__).parents[2]

    class option:
        plugins = ("kmt.report.live", "no:cacheprovider", "tests.strategies", "no_such_plugin")


def test_plugins_of_the_project_travel_and_ours_stay():
    assert travelling_options(Config) == ("-p", "tests.strategies")
