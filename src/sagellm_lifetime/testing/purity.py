"""Checks that ``predict`` learns nothing, and neither changes nor keeps its arguments."""

from __future__ import annotations

from copy import deepcopy

from sagellm_lifetime.testing.common import (
    Make,
    finished_sequences,
    make_request,
    outlook,
    outlooks,
    questions,
    trained,
    what_is_known,
)


def check_predict_learns_nothing(make: Make) -> None:
    """Check that predictions leave what is learned as it was, byte for byte."""
    predictor = trained(make)
    before = what_is_known(predictor)
    for _ in range(3):
        for request in questions():
            predictor.predict(request)
    predictor.predict_batch(questions("batch"))
    assert what_is_known(predictor) == before, "predict() changed what is learned"


def check_asking_again_gives_the_same(make: Make) -> None:
    """Check that the same request has the same answer until something is learned."""
    predictor = trained(make)
    requests = questions()
    assert outlooks(predictor, requests) == outlooks(predictor, requests)


def check_other_sequences_do_not_matter(make: Make) -> None:
    """Check that predicting one sequence does not change the answer for another."""
    predictor, twin = trained(make), trained(make)
    for sequence in finished_sequences(20, seed=3, name="other"):
        for request in sequence.requests:
            twin.predict(request)
    assert outlooks(predictor, questions()) == outlooks(twin, questions())


def check_arguments_are_untouched(make: Make) -> None:
    """Check that the request is not changed."""
    predictor = trained(make)
    for request in questions():
        copy = deepcopy(request)
        predictor.predict(request)
        predictor.predict_batch([request])
        assert request == copy, "predict() changed its request"


def check_no_hold_of_arguments(make: Make) -> None:
    """Check that nothing kept changes with the engine's token list and features."""
    predictor, twin = trained(make), trained(make)
    for i in range(24):
        tokens = list(range(i, i + 90))
        features = {"client_id": f"c{i % 3}", "prefix_hashes": [i, i + 1], "prompt_length": 50}
        mine = make_request(f"held{i}", 40, 512)
        mine.token_ids, mine.prompt_features = tokens, features
        theirs = deepcopy(mine)
        assert outlook(predictor.predict(mine)) == outlook(twin.predict(theirs))
        tokens[:] = [0] * 200
        features.update(client_id="someone else", prefix_hashes=[], prompt_length=3)
        mine.sequence_id, mine.current_length = "another", 0
        for learner in (predictor, twin):
            learner.update(f"held{i}", 100 + i, 1.0)
    assert what_is_known(predictor) == what_is_known(twin), "it learned from a list changed later"


CHECKS = [
    check_predict_learns_nothing,
    check_asking_again_gives_the_same,
    check_other_sequences_do_not_matter,
    check_arguments_are_untouched,
    check_no_hold_of_arguments,
]
