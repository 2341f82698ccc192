"""Every predictor passes every check of the conformance suite."""

from functools import partial

import pytest

from sagellm_lifetime import PREDICTORS, create_predictor
from sagellm_lifetime.testing import CHECKS

pytestmark = pytest.mark.usefixtures("new_weights_at_once")

SMALL = {
    "lstm": {"hidden_size": 16, "epochs": 2},
    "transformer": {"d_model": 16, "nhead": 2, "num_layers": 1, "epochs": 2},
}


MAKES = {
    name: partial(create_predictor, name, seed=3, **SMALL.get(name, {})) for name in PREDICTORS
}


# The two networks share all but their layers, so one of them is enough for every day.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "transformer" else name
    for name in PREDICTORS
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_conformance(name, check):
    check(MAKES[name])
