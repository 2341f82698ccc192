"""Requests behind a history: what an engine would have known at an age, and nothing else."""

import polars as pl

from sagellm_lifetime.features.rows import HistoryRequests

FRAME = pl.DataFrame(
    {
        "request_id": ["a", "b", "c"],
        "client_id": ["x", None, "y"],
        "turn": [0, None, 2],
        "prompt_length": [3, 0, None],
        "max_length": [100, None, 50],
        "actual_length": [4, 10, 6],
        "actual_time": [1.0, 2.0, 3.0],
        "finish_reason": ["stop", "abort", "length"],
        "prompt_token_ids": [[1, 2, 3], None, [7]],
        "output_token_ids": [[10, 11, 12, 13], None, [20, 21]],
        "output_text": [None, "0123456789" * 3, None],
    }
)


def test_admission_knows_nothing_of_the_outcome():
    requests = HistoryRequests(FRAME)
    first, second, third = (requests.request(i) for i in range(3))
    assert first.token_ids == [1, 2, 3]
    assert first.prompt_features == {"client_id": "x", "turn": 0, "prompt_length": 3}
    assert (first.max_length, second.max_length) == (100, None)
    assert second.token_ids == []
    assert second.prompt_features == {"prompt_length": 0}
    assert third.prompt_features == {"client_id": "y", "turn": 2}
    told = {key for r in (first, second, third) for key in r.prompt_features}
    assert not told & {"actual_length", "actual_time", "finish_reason", "output_text"}


def test_later_ages_know_what_was_generated_by_then():
    requests = HistoryRequests(FRAME)
    assert requests.has_content
    assert requests.request(0, 2).token_ids == [1, 2, 3, 10, 11]
    assert requests.request(0, 2, "name").sequence_id == "name"
    half = requests.request(1, 5)
    assert half.prompt_features["output_text"] == "0123456789" * 1 + "01234"
    # Fewer ids than the length says: what is not there is not made up.
    assert requests.request(2, 4).token_ids == []


def test_signals_are_those_of_full_windows():
    frame = pl.DataFrame(
        {
            "actual_length": [40, 5],
            "eos_logprob": [[-9.0, -2.0], []],
            "entropy": [[1.0, 2.0], None],
            "temperature": [0.5, None],
        }
    )
    requests = HistoryRequests(frame)
    said = [requests.request(0, age).prompt_features for age in (0, 15, 16, 31, 32, 39)]
    assert [each.get("eos_logprob") for each in said] == [
        *(None, None, [-9.0], [-9.0], [-9.0, -2.0], [-9.0, -2.0])
    ]
    assert [each.get("entropy") for each in said] == [
        *(None, None, [1.0], [1.0], [1.0, 2.0], [1.0, 2.0])
    ]
    assert said[0] == {"temperature": 0.5}
    assert requests.request(1, 4).prompt_features is None


def test_a_bare_history():
    requests = HistoryRequests(pl.DataFrame({"actual_length": [5]}))
    assert not requests.has_content
    assert len(requests) == 1
    request = requests.request(0, 3)
    assert (request.token_ids, request.max_length, request.prompt_features) == ([], None, None)


def test_prompts_are_not_shared_with_the_frame():
    requests = HistoryRequests(FRAME)
    requests.request(0).token_ids.append(99)
    requests.request(0).prompt_features["client_id"] = "other"
    assert requests.request(0).token_ids == [1, 2, 3]
    assert requests.request(0).prompt_features["client_id"] == "x"
