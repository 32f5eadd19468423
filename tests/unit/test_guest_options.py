import argparse
import copy
from pathlib import Path

import pytest

from kmt.plugin.options import travelling_options


class Config:
    """As much of pytest's as is asked."""

    rootpath = Path(__file__).parents[2]

    class option:
        plugins = ("kmt.report.live", "no:cacheprovider", "tests.strategies", "no_such_plugin")


@pytest.mark.parametrize(
    "said", ["--runxfail", "--hypothesis-profile=thorough", "--hypothesis-verbosity=debug", "--hypothesis-seed=7"]
)
def test_what_decides_of_outcomes_in_a_guest_travels(pytestconfig, said):
    parsed = copy.copy(pytestconfig)
    parsed.option = pytestconfig._parser.parse_known_args([said], namespace=argparse.Namespace())
    assert said in travelling_options(parsed)
    parsed.option = pytestconfig._parser.parse_known_args([], namespace=argparse.Namespace())
    assert said not in travelling_options(parsed)


def test_plugins_of_the_project_travel_and_ours_stay():
    assert travelling_options(Config) == ("-p", "tests.strategies")
