"""The recorded answers that ship with the package are what their card says."""

from importlib import resources

import polars as pl
import pytest

from sagellm_lifetime.evaluation.floor import noise_floor
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.workloads.recorded import recorded


@pytest.fixture(scope="module")
def answers():
    return recorded()


def test_many_answers_in_a_small_file(answers):
    folder = resources.files("sagellm_lifetime.workloads.recorded")
    with resources.as_file(folder / "smollm2-answers.parquet") as path:
        assert path.stat().st_size < 10e6
    assert len(answers) >= 3000
    assert answers["client_id"].n_unique() >= 16
    samples = answers.filter(pl.col("session_id").is_null()).group_by("prompt_id").len()
    assert (samples["len"] >= 5).sum() >= 200
    assert (answers["turn"].drop_nulls() > 1).sum() > 400


def test_every_answer_has_what_was_seen(answers):
    lengths, cap = answers["actual_length"], answers["max_length"]
    assert answers["output_token_ids"].list.len().to_list() == lengths.to_list()
    assert answers["prompt_token_ids"].list.len().to_list() == answers["prompt_length"].to_list()
    for name in ("eos_logprob", "entropy"):
        assert answers[name].list.len().to_list() == (lengths // 16).to_list()
    assert answers["eos_logprob"].explode().max() < 0 <= answers["entropy"].explode().min()
    capped = answers["finish_reason"] == "length"
    assert (lengths.filter(capped) == cap.filter(capped)).all()
    assert set(answers["finish_reason"].unique()) <= {"stop", "length"}
    assert answers["temperature"].is_between(0.0, 2.0).all()


def _seen(column):
    """Return the different values of a column, also of lists of token ids."""
    return set(map(str, column.drop_nulls().to_list()))


def test_no_prompt_is_in_both_parts(answers):
    parts = split(answers, "session")
    for name in ("session_id", "prompt_id", "prompt_token_ids"):
        train, test = (_seen(part[name]) for part in (parts.train, parts.test))
        assert train
        assert not train & test
    floor = noise_floor(parts.test)
    assert floor is not None
    assert floor["n"] > 100
    assert floor["mae"] > 0
