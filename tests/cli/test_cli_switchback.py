"""``engine start --lifetime-mode switchback --period TIME``: what is taken, and what is refused."""

import pytest

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.engine import _period
from sagellm_lifetime.cli.stats import FEWEST_PAIRS
from sagellm_lifetime.evaluation import switchback


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600.0),
        ("90s", 90.0),
        ("1h", 3600.0),
        ("45", 45.0),
        (" 1.5 min ", 90.0),
        (None, None),
    ],
)
def test_a_time(text, seconds):
    assert _period(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "1d", "0", "0.5", "25h", "1e3", "nan", "10m5s"])
def test_a_time_that_is_none(text):
    with pytest.raises(CommandError, match="give a time such as 90s, 10m or 1h"):
        _period(text)


def test_it_needs_prediction(refused):
    line = refused("engine", "start", "model", "--period", "10m")
    assert line == "error: --lifetime-switchback-period needs --enable-lifetime-prediction\n"


def test_the_fewest_pairs_are_those_of_the_estimate():
    assert FEWEST_PAIRS == switchback.FEWEST_PAIRS
