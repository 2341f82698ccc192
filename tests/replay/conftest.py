"""A small trace, and an engine it is too much for."""

import polars as pl
import pytest

from sagellm_lifetime.replay.cost import cost_model
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.trace import at_rate, make_trace
from sagellm_lifetime.workloads import generate


@pytest.fixture(scope="session")
def frame():
    """60 short requests of a reasoning model, some capped, some aborted."""
    drawn = generate("reasoning", 200, seed=5, capped_share=0.3, abort_share=0.05)
    short = (pl.col("prompt_length") <= 1500) & (pl.col("actual_length") <= 1500)
    return drawn.filter(short).head(60)


@pytest.fixture(scope="session")
def trace(frame):
    return at_rate(make_trace(frame), 4.0)


@pytest.fixture(scope="session")
def tight():
    """A pool too small for what comes."""
    return EngineSettings(blocks=400)


@pytest.fixture(scope="session")
def cost():
    return cost_model("a100-7b")
