"""Why a sequence ended, told as vLLM's front end tells it: these need no vLLM but for the last."""

from itertools import product
from types import SimpleNamespace

import pytest

from sagellm_lifetime.vllm.finish_reasons import FinishReasons

PIECES = ["", "one", " two", " END", " EN", "D", " three", "END now", "<eos>"]
"""The text of each token."""
ONE, TWO, END, EN, D, THREE, GLUED, EOS = range(1, 9)


def decode(ids, skip_special_tokens):
    text = "".join(PIECES[i] for i in ids)
    return text.replace("<eos>", "") if skip_special_tokens else text


@pytest.fixture
def endings():
    made = FinishReasons()
    made.tokenizer = SimpleNamespace(decode=decode)
    return made


def request(tokens, *, status="FINISHED_ABORTED", stop=("END",), min_tokens=0, special=False):
    return SimpleNamespace(
        status=SimpleNamespace(_name_=status),
        sampling_params=SimpleNamespace(
            stop=list(stop), min_tokens=min_tokens, skip_special_tokens=not special
        ),
        _output_token_ids=tokens,
    )


@pytest.mark.parametrize(
    ("tokens", "min_tokens", "reason"),
    [
        ([ONE, TWO, END], 0, "stop"),
        ([ONE, TWO, THREE], 0, "abort"),
        # Before min_tokens the front end does not look: who leaves then has hung up.
        ([ONE, END, TWO], 3, "abort"),
        ([ONE, END, TWO, THREE, TWO, THREE], 4, "abort"),
        ([ONE, END, TWO], 200, "abort"),
        ([ONE, TWO, END], 3, "abort"),  # it is the last of those that do not count
        ([ONE, END, TWO, END], 3, "stop"),  # and a second one counts
        ([ONE, TWO, END], 2, "stop"),
        # A stop string in several tokens counts by its last one.
        ([ONE, EN, D], 2, "stop"),
        ([ONE, EN, D, TWO], 3, "abort"),
        ([ONE, EN, D, TWO], 2, "stop"),
        ([ONE, GLUED], 1, "stop"),  # within a token, its text goes on
        # Far behind what is looked at, and long before the end.
        ([END] + [TWO] * 500, 3, "abort"),
        ([TWO] * 500 + [END, TWO], 3, "stop"),
        ([TWO] * 500 + [END, TWO], 501, "abort"),
        ([], 0, "abort"),
    ],
)
def test_a_stop_string_counts_from_min_tokens_on(endings, tokens, min_tokens, reason):
    assert endings.reason(request(tokens, min_tokens=min_tokens)) == reason


def test_a_single_stop_string_and_several(endings):
    alone = request([ONE, END, TWO], min_tokens=2)
    alone.sampling_params.stop = "END"
    assert endings.reason(alone) == "abort"
    assert endings.reason(request([ONE, END, THREE], min_tokens=2, stop=["END", "three"])) == "stop"


def test_the_end_token_is_text_where_special_tokens_are(endings):
    ends = [ONE, EOS]  # under ignore_eos the engine goes on after it
    assert endings.reason(request(ends, stop=["<eos>"], special=True)) == "stop"
    assert endings.reason(request(ends, stop=["<eos>"])) == "abort"
    assert endings.reason(request([*ends, TWO], stop=["<eos>"], special=True, min_tokens=2)) == (
        "abort"
    )


def test_a_character_that_min_tokens_cut_is_not_text_yet(endings):
    def bytewise(ids, skip_special_tokens):
        return bytes(ids).decode(errors="replace")

    endings.tokenizer = SimpleNamespace(decode=bytewise)
    tokens = list("a\N{EURO SIGN}b".encode())  # three bytes in the middle
    for min_tokens, reason in ((1, "stop"), (2, "stop"), (3, "stop"), (4, "abort"), (5, "abort")):
        found = request(tokens, stop=["\N{EURO SIGN}"], min_tokens=min_tokens)
        assert endings.reason(found) == reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("FINISHED_STOPPED", "stop"),
        ("FINISHED_LENGTH_CAPPED", "length"),
        ("FINISHED_REPETITION", "length"),
        ("FINISHED_ERROR", "error"),
    ],
)
def test_what_the_engine_says_itself_is_true(endings, status, reason):
    early = request([ONE, END, TWO], status=status, min_tokens=200)
    assert endings.reason(early) == reason


def test_without_a_tokenizer_it_is_an_abort():
    assert FinishReasons().reason(request([ONE, END])) == "abort"


def test_it_is_what_vllms_front_end_does(vllm, endings):
    """Every text of five letters, every min_tokens, against vLLM's own detokenizer."""
    from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer

    class FrontEnd(BaseIncrementalDetokenizer):
        def decode_next(self, next_token_id):
            return "abc"[next_token_id]

    endings.tokenizer = SimpleNamespace(
        decode=lambda ids, skip_special_tokens: "".join("abc"[i] for i in ids)
    )
    for stop, include, min_tokens in product(["ab", "bca", "c"], [False, True], range(6)):
        for tokens in product(range(3), repeat=5):
            asked = request([], stop=[stop], min_tokens=min_tokens)
            asked.sampling_params.include_stop_str_in_output = include
            front_end, stopped = FrontEnd(asked), False
            for token in tokens:
                asked._output_token_ids.append(token)
                stopped = front_end.update([token], False) is not None
                if stopped:
                    break
            assert endings.reason(asked) == ("stop" if stopped else "abort")
