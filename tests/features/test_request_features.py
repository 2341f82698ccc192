"""What a request says: numbers and hashed keys, missing is not zero, nonsense is refused."""

from collections import deque
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import PREFIX_HEAD, check_request
from sagellm_lifetime.features.request import read_request as read

KEYS = NameKeys.seeded(0)


def read_request(asked):
    return read(asked, KEYS)


def request(**said) -> PredictionRequest:
    return PredictionRequest(1, [], 0, 512, said)


def test_nothing_said():
    features = read_request(PredictionRequest(1, [], 0, None))
    assert features.prompt_length is None
    assert features.max_length is None
    assert features.client_key == features.session_key == features.model_key == 0
    assert features.prefix_head == ()


def test_everything_said():
    features = read_request(
        request(
            prompt_length=40,
            model="m",
            client_id="c",
            session_id=7,
            turn=3,
            arrival_time=1.5,
            temperature=0.7,
            has_tools=0,
            response_format="json",
            enable_thinking=True,
            prefix_hashes=list(range(20)),
            nobody_knows=object(),
        )
    )
    assert (features.prompt_length, features.turn, features.temperature) == (40, 3, 0.7)
    assert (features.has_tools, features.json_format, features.thinking) == (False, True, True)
    assert features.model == "m"
    assert features.client_key == KEYS.key("client", "c")
    assert features.session_key == KEYS.key("session", "7", features.client_key)
    assert features.prefix_head == tuple(range(PREFIX_HEAD))


def test_prompt_length_from_tokens_unless_said():
    assert read_request(PredictionRequest(1, [1] * 10, 4, None)).prompt_length == 6
    assert read_request(PredictionRequest(1, [1] * 4, 4, None)).prompt_length is None
    assert read_request(PredictionRequest(1, [1] * 3, 9, None)).prompt_length is None
    said = {"prompt_length": 0}
    assert read_request(PredictionRequest(1, [1] * 10, 0, None, said)).prompt_length == 0


def test_a_session_is_that_of_its_client():
    mine = read_request(request(client_id="a", session_id="s"))
    theirs = read_request(request(client_id="b", session_id="s"))
    assert mine.session_key != theirs.session_key


@pytest.mark.parametrize(("said", "kept"), [(2.0, 2.0), (1e19, 10.0), (-1e308, -10.0)])
def test_a_temperature_is_bounded(said, kept):
    assert read_request(request(temperature=said)).temperature == kept


def test_hashes_of_any_sign_and_width_become_int64():
    head = read_request(request(prefix_hashes=[-1, 2**64 - 1, 2**300 + 5, 7])).prefix_head
    assert all(0 <= h < 2**63 for h in head)
    assert head[3] == 7
    assert np.array(head, dtype=np.int64).tolist() == list(head)


@pytest.mark.parametrize(
    "said",
    [
        {"prompt_length": -1},
        {"prompt_length": "many"},
        {"prompt_length": 10**400},
        {"turn": float("nan")},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"arrival_time": float("inf")},
        {"prefix_hashes": 5},
        {"prefix_hashes": ["x"]},
    ],
)
def test_nonsense_is_refused_with_the_id(said):
    with pytest.raises(RequestError, match="1") as caught:
        read_request(request(**said))
    assert "\n" not in str(caught.value)


def test_check_request_gives_plain_ints():
    plain = PredictionRequest("a", [], 3, 10)
    assert check_request(plain) is plain
    numpy = check_request(PredictionRequest(np.int64(5), [], np.uint8(3), np.int32(10)))
    assert [type(x) for x in (numpy.sequence_id, numpy.current_length, numpy.max_length)] == [
        int
    ] * 3
    assert check_request(PredictionRequest(1, [], 0, 2**63 - 1)).max_length == 2**63 - 1


@pytest.mark.parametrize(
    ("name", "age", "cap"),
    [
        (1, -1, None),
        (1, 2.0, None),
        (1, True, None),
        (1, np.float64(2), None),
        (1, np.array([1, 2]), None),
        (1, 2**54, None),
        (1, 0, -1),
        (1, 0, False),
        (1, 0, 2**63),
        (None, 0, None),
        (1.5, 0, None),
        ((1, 2), 0, None),
    ],
)
def test_check_request_refuses(name, age, cap):
    with pytest.raises(RequestError) as caught:
        check_request(PredictionRequest(name, [], age, cap))
    assert "\n" not in str(caught.value)


class Failing:
    def __str__(self):
        raise ArithmeticError("no words")

    __bool__ = __float__ = __str__


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({"prefix_hashes": np.array([1, 2])}, {"prefix_head": (1, 2)}),
        ({"prefix_hashes": np.array([2**64 - 1], dtype=np.uint64)}, {"prefix_head": (2**63 - 1,)}),
        ({"prefix_hashes": (3, np.int8(4))}, {"prefix_head": (3, 4)}),
        ({"prefix_hashes": []}, {"prefix_head": ()}),
        ({"prompt_length": np.int16(7)}, {"prompt_length": 7}),
        ({"prompt_length": 7.0}, {"prompt_length": 7}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": np.array(0.5)}, {"temperature": 0.5}),
        ({"turn": "3"}, {"turn": 3}),
        ({"model": np.str_("m")}, {"model": "m"}),
        ({"has_tools": np.True_}, {"has_tools": True}),
    ],
)
def test_values_of_any_kind_are_taken_where_they_are_exact(said, read):
    features = read_request(request(**said))
    for name, value in read.items():
        assert getattr(features, name) == value


@pytest.mark.parametrize(
    "said",
    [
        {"prompt_length": True},
        {"prompt_length": 7.5},
        {"prompt_length": np.array([7])},
        {"turn": False},
        {"turn": 0.5},
        {"temperature": True},
        {"temperature": np.array([0.5, 0.6])},
        {"arrival_time": 10**400},
        {"prefix_hashes": [1.5]},
        {"prefix_hashes": [True]},
        {"prefix_hashes": "123"},
        {"prefix_hashes": {1, 2}},
        {"model": ["m"]},
        {"model": Failing()},
        {"client_id": np.array(["a", "b"])},
        {"session_id": 10**5000},
        {"has_tools": Failing()},
        {"response_format": np.array(["a", "b"])},
        {"prompt_text": ["secret"]},
        {"output_text": 5},
    ],
    ids=lambda said: next(iter(said)),
)
def test_what_cannot_be_is_refused_by_its_name(said):
    with pytest.raises(RequestError) as caught:
        read_request(request(**said))
    message = str(caught.value)
    assert message.startswith(f"prompt_features of 1: {next(iter(said))} must be ")
    assert "secret" not in message
    assert len(message) < 300


def test_a_long_name_of_a_model_is_kept_short():
    """It names an array of a checkpoint, whose header has a limit."""
    names = ["m" * 10_000 + end for end in "ab"]
    kept = [read_request(request(model=name)).model for name in names]
    assert max(map(len, kept)) <= 128
    assert kept[0] != kept[1]


def test_check_request_takes_arrays_and_mappings():
    features = MappingProxyType({"client_id": "c"})
    for tokens in (np.arange(3, dtype=np.uint16), (0, 1, 2), range(3), deque([0, 1, 2])):
        found = check_request(PredictionRequest("a", tokens, np.int8(1), None, features))
        assert found.token_ids == [0, 1, 2]
        assert type(found.token_ids[0]) is int
        assert found.prompt_features == {"client_id": "c"}
    assert check_request(PredictionRequest("a", None, 0, None)).token_ids == []


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_id": True},
        {"sequence_id": [1]},
        {"current_length": 10**5000},
        {"max_length": 10**5000},
        {"sequence_id": "x" * 10**6, "max_length": -1},
        {"token_ids": "abc"},
        {"token_ids": 5},
        {"token_ids": np.zeros((2, 2))},
        {"token_ids": {1, 2}},
        {"prompt_features": ["a"]},
        {"prompt_features": "client_id"},
    ],
    ids="-".join,
)
def test_check_request_refuses_in_one_bounded_line(change):
    with pytest.raises(RequestError) as caught:
        check_request(replace(PredictionRequest(1, [], 0, None), **change))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("what", [None, "a", {"sequence_id": 1}, 5])
def test_what_is_no_request(what):
    with pytest.raises(RequestError, match="a request must be a PredictionRequest"):
        check_request(what)
