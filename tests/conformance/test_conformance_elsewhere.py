"""A predictor passes every check when a replica learns for it and it takes over the state.

Here the replica is in this process and learns at once, for the checks ask at once; a lesson makes
the same way through pickle, and the state the same way through a twin.
"""

import pickle
from functools import cache, partial

import pytest
from test_conformance import SMALL

from sagellm_lifetime.predictor.registry import create_predictor, predictor_class
from sagellm_lifetime.testing import CHECKS


class AtOnce:
    """Teaches a replica every completion, and the predictor all that the replica knows."""

    def __init__(self, predictor):
        self.predictor = predictor
        self.replica = None

    def take(self, completion):
        if self.replica is None:
            self.replica = create_predictor(self.predictor.name, **self.predictor.options)
            self.replica.restore(self.predictor.state())
        self.replica.learn(pickle.loads(pickle.dumps(completion)))
        learned = self.predictor.successor(self.replica.state())
        self.predictor.swap(learned, learner=self)

    def counts(self):
        return {}


@cache
def taught_elsewhere(name):
    class Elsewhere(predictor_class(name)):
        def __init__(self, **options):
            super().__init__(**options)
            self.hand_over_to(AtOnce(self))

        def new(self, **changes):
            return type(self)(**{**self.options, **changes})

        def restore(self, arrays):
            self._queue = None
            try:
                super().restore(arrays)
            finally:
                self._queue = AtOnce(self)

        def fit(self, history, **options):
            self._queue = None
            try:
                return super().fit(history, **options)
            finally:
                self._queue = AtOnce(self)

    return Elsewhere


NAMES = ("linear", "survival", "lstm")
"""One of each kind: without instant parts of its own, with them, and with a network."""
MAKES = {name: partial(taught_elsewhere(name), seed=3, **SMALL.get(name, {})) for name in NAMES}


ALIKE_ONLY = {"check_save_and_load", "check_learning_after_load"}
"""They compare with one loaded from a file. That one learns by itself, and its calibration 32
answers at a time; here it learns at every lesson. ``tests/predictor/test_background_learner.py``
has them."""


@pytest.mark.parametrize(
    "check",
    [check for check in CHECKS if check.__name__ not in ALIKE_ONLY],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "lstm" else name for name in NAMES],
)
def test_conformance_elsewhere(name, check):
    check(MAKES[name])
