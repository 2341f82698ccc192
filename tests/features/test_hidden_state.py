"""Readings of a hidden state in a request."""

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest, RequestError
from sagellm_lifetime.features.hidden_state import COMPONENTS, read_hidden, reduced, stage_of


def asked(value, age=0, **features):
    return PredictionRequest("r", [], age, None, {"hidden_state": value, **features})


@pytest.mark.parametrize(
    "value", [[1.0, 2.0], (1, 2), np.array([1, 2]), np.array([1.0, 2.0], np.float16)]
)
def test_a_vector_of_any_kind_is_the_first_reading(value):
    hidden = read_hidden(asked(value))
    (reading,) = hidden.readings
    assert (reading.stage, reading.components.tolist()) == (0, [1.0, 2.0])
    assert reading.components.dtype == np.float32


def test_without_one_there_is_none():
    assert read_hidden(PredictionRequest(1, [], 0, None)) is None
    assert read_hidden(asked(None)) is None


@pytest.mark.parametrize(
    "value",
    [
        "text",
        [],
        [[1.0]],
        [1.0, float("nan")],
        [float("inf")],
        {"x": [1.0]},
        {-1: [1.0]},
        [None],
        [True],
        {0: "text"},
        np.zeros(70_000),
        object(),
    ],
)
def test_what_is_no_vector_is_refused_in_one_line_without_its_numbers(value):
    with pytest.raises(RequestError, match=r"hidden_state must be a list") as caught:
        read_hidden(asked(value))
    assert "\n" not in str(caught.value)
    assert "1.0" not in str(caught.value)


def test_ages_choose_the_reading():
    assert [stage_of(age) for age in (0, 1, 15, 16, 32, 47, 48, 64, 5000)] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
    ]
    first = read_hidden(asked([1.0, 0.0], age=1))
    both = read_hidden(asked([2.0, 0.0], age=33), first)
    assert [one.stage for one in both.readings] == [0, 1]
    assert read_hidden(asked([3.0, 0.0], age=40), both) is None
    assert both.at(10).readings == first.readings


def test_a_mapping_tells_the_ages():
    hidden = read_hidden(asked({"0": [1.0], 32: [2.0], 64: [3.0]}, age=100))
    assert [(one.stage, one.components.item()) for one in hidden.readings] == [
        (0, 1.0),
        (1, 2.0),
        (2, 3.0),
    ]


def test_a_vector_that_is_passed_with_every_request_is_new_once():
    first = read_hidden(asked([1.0, 2.0]))
    assert read_hidden(asked([1.0, 2.0], age=40), first) is None


def test_source_tells_models_layers_and_widths_apart():
    keys = {
        read_hidden(asked(value, **features)).source
        for value, features in (
            ([1.0], {}),
            ([1.0, 2.0], {}),
            ([1.0], {"model": "a"}),
            ([1.0], {"model": "b"}),
            ([1.0], {"model": "b", "hidden_source": "layer 20"}),
        )
    }
    assert len(keys) == 5
    first = read_hidden(asked([1.0], model="a"))
    assert read_hidden(asked([1.5], age=40, model="b"), first) is None


def test_wide_vectors_keep_their_distances_and_lose_their_giants():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, 2048))
    vectors[2] = vectors[0] + 0.1 * rng.normal(size=2048)
    vectors[:, 7] = 5000.0  # as large in all of them
    few = np.stack([reduced(vector) for vector in vectors])
    assert few.shape == (3, COMPONENTS)
    near, far = np.linalg.norm(few[0] - few[2]), np.linalg.norm(few[0] - few[1])
    assert near < 0.2 * far
    assert np.array_equal(few[0], reduced(vectors[0]))
