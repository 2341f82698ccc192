"""What a request says: numbers and hashed keys, missing is not zero, nonsense is refused."""

import numpy as np
import pytest

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.request import PREFIX_HEAD, check_request, key_of, read_request


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
    assert features.client_key == key_of("client", "c")
    assert features.session_key == key_of("session", "7")
    assert features.prefix_head == tuple(range(PREFIX_HEAD))


def test_prompt_length_from_tokens_unless_said():
    assert read_request(PredictionRequest(1, [1] * 10, 4, None)).prompt_length == 6
    assert read_request(PredictionRequest(1, [1] * 4, 4, None)).prompt_length is None
    assert read_request(PredictionRequest(1, [1] * 3, 9, None)).prompt_length is None
    said = {"prompt_length": 0}
    assert read_request(PredictionRequest(1, [1] * 10, 0, None, said)).prompt_length == 0


def test_keys_do_not_collide_between_kinds_and_are_never_zero():
    assert key_of("client", "x") != key_of("session", "x")
    assert all(key_of("client", i) for i in range(1000))


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
