"""A predictor passes every check when a replica learns for it and it takes over the state.

Here the replica is in this process and learns at once, for the checks ask at once; a lesson makes
the same way through pickle, and the state the same way through a twin.
"""

import pickle
from functools import cache, partial

import pytest
from test_conformance import SMALL

from sagellm_lifetime.predictor.knowledge import knowledge, set_knowledge, take_over
from sagellm_lifetime.predictor.registry import predictor_class
from sagellm_lifetime.testing import CHECKS


class AtOnce:
    """Teaches a replica every lesson, and the predictor all that the replica knows."""

    def __init__(self, predictor, cls):
        self.predictor, self.cls = predictor, cls
        self.replica = None

    def take(self, lesson):
        if self.replica is None:
            self.replica = self.cls(**self.predictor._options)
            set_knowledge(self.replica, knowledge(self.predictor))
        self.replica.learn(pickle.loads(pickle.dumps(lesson)))
        take_over(self.predictor, knowledge(self.replica))

    def counts(self):
        return {}


@cache
def taught_elsewhere(name):
    cls = predictor_class(name)

    class Elsewhere(cls):
        def __init__(self, **options):
            super().__init__(**options)
            self._elsewhere = AtOnce(self, cls)

        def fit(self, history, **options):
            self._elsewhere = None
            try:
                return super().fit(history, **options)
            finally:
                self._elsewhere = AtOnce(self, cls)

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
@pytest.mark.parametrize("name", NAMES)
def test_conformance_elsewhere(name, check):
    check(MAKES[name])
