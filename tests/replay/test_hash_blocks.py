"""How many prompt tokens stand behind one id of ``prefix_hashes``."""

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.replay.hash_blocks import HashBlocks, hash_blocks
from sagellm_lifetime.replay.trace import make_trace
from sagellm_lifetime.workloads import generate


def rows(size: int, *, partial: bool, first: int | None = None, n: int = 60) -> pl.DataFrame:
    """Prompts of a workload that share their first ids, as a tool with such blocks logs them.

    partial: the last, partial block has an id. first: only so many ids are kept.
    """
    rng = np.random.default_rng(size)
    tokens = rng.integers(max(size // 2, 2), 40 * size, n)
    count = -(-tokens // size) if partial else tokens // size
    ids = [[*range(min(3, k)), *range(1000 * i, 1000 * i + k - 3)] for i, k in enumerate(count, 1)]
    return pl.DataFrame(
        {
            "arrival_time": np.arange(n) * 1.0,
            "prompt_length": tokens,
            "actual_length": [5] * n,
            "prefix_hashes": [each[:first] for each in ids],
        },
        schema_overrides={"prefix_hashes": pl.List(pl.Int64)},
    )


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("size", [16, 64, 100, 128, 512, 1024])
def test_the_size_is_told_from_the_prompt_lengths(size, partial):
    frame = rows(size, partial=partial)
    assert hash_blocks(frame) == HashBlocks(size, "inferred")
    if size != 100:  # of two prompts, a power of two is told from its neighbours
        two = frame.filter(pl.col("prompt_length") > 20 * size).head(2)
        assert hash_blocks(two) == HashBlocks(size, "inferred")


@pytest.mark.parametrize("size", [16, 512])
def test_lists_that_keep_the_first_ids_only(size):
    assert hash_blocks(rows(size, partial=False, first=8)).tokens == size


def test_prompts_share_as_many_tokens_as_the_trace_says():
    for size in (16, 64):
        frame = rows(size, partial=True)
        long = frame.filter(pl.col("prompt_length") > 5 * size)
        first, second = [one.prompt_token_ids for one in make_trace(long)][:2]
        shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        assert shared == 3 * size
        assert [len(one.prompt_token_ids) for one in make_trace(long)] == long[
            "prompt_length"
        ].to_list()


def test_a_size_that_is_stated_is_believed_if_it_can_be():
    frame = rows(512, partial=True)
    assert hash_blocks(frame, 300) == HashBlocks(300, "stated")
    assert make_trace(frame, hash_block_size=300)[0].block_tokens == 300
    with pytest.raises(HistoryError, match="ids of 256 tokens are more than a prompt") as error:
        hash_blocks(rows(16, partial=True), 256)
    assert "--hash-block-size" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_told_is_refused_in_one_line():
    mixed = pl.concat([rows(16, partial=True), rows(64, partial=True)])
    with pytest.raises(HistoryError, match="no number of tokens an id fits all prompts") as error:
        make_trace(mixed)
    assert "--hash-block-size N" in str(error.value)
    assert "\n" not in str(error.value)
    either = pl.DataFrame({"prompt_length": [700], "prefix_hashes": [[1]]})
    assert hash_blocks(either).tokens == 512, "the usual size if it fits"
    either = pl.DataFrame({"prompt_length": [5000], "prefix_hashes": [[1]]})
    with pytest.raises(HistoryError, match="fit ids of 4,096, 8,192, 16,384, 32,768 tokens alike"):
        hash_blocks(either)


def test_rows_without_ids_or_with_tokens_need_no_size():
    frame = rows(16, partial=True)
    assert hash_blocks(frame.drop("prefix_hashes")) is None
    assert hash_blocks(frame.drop("prompt_length")) is None
    nothing = pl.lit([], pl.List(pl.Int64))
    assert hash_blocks(frame.with_columns(prefix_hashes=nothing)) is None
    tokens = pl.Series([[7] * n for n in frame["prompt_length"]])
    assert hash_blocks(frame.with_columns(prompt_token_ids=tokens)) is None


def test_our_own_profile_has_the_blocks_of_mooncake():
    assert hash_blocks(generate("mooncake-conversation", 200, seed=1)).tokens == 512
