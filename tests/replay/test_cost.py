"""Step costs: arithmetic, and the published figures they were fitted to."""

import numpy as np
import pytest

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.replay.cost import A100_7B, H100_70B, MODELS, StepCost, cost_model

# LMDeploy 0.1.0a1, docs/en/benchmark/a100_fp16.md, llama2-7b: batch, prompt, output, and the
# median latency of a token in ms. The two rows that do not fit in memory are left out.
A100 = """
1 1 128 9;    1 128 128 10;  1 128 2048 10;  1 2048 128 10;  1 2048 2048 11;
16 1 128 10;  16 128 128 11; 16 128 2048 15; 16 2048 128 20; 16 2048 2048 25;
32 1 128 11;  32 128 128 12; 32 128 2048 21; 32 2048 128 31; 32 2048 2048 40;
64 1 128 12;  64 128 128 14; 64 128 2048 30
"""
# NVIDIA NIM benchmarking guide, Llama-3.3-70B fp8 on 2 x H100, 5,000 in and 500 out: concurrency,
# inter-token latency in ms. Each of the others prefills 10 tokens per token it generates.
H100 = {1: 18.58, 5: 21.83, 25: 38.75, 50: 59.73}


def test_a_step_is_the_sum_of_its_parts():
    cost = StepCost("x", base=1.0, per_decode=0.1, per_prefill_token=0.01, per_context_token=0.001)
    assert cost.seconds(3, 20, 500) == pytest.approx(1.0 + 0.3 + 0.2 + 0.5)
    assert MODELS["cpu-small"].seconds(10, 100, 9999) == pytest.approx(0.0464 + 0.0284 + 0.168)


def test_every_model_says_where_it_comes_from():
    for name, model in MODELS.items():
        assert cost_model(name) is model
        assert model.source
        assert model.fit
    with pytest.raises(UnknownNameError, match="cost model"):
        cost_model("tpu")


def test_the_a100_model_is_the_fit_of_the_published_table():
    rows = np.array([row.split() for row in A100.split(";")], dtype=float)
    batch, prompt, output, measured = rows.T
    design = np.stack([np.ones(len(rows)), batch, batch * (prompt + output / 2)], axis=1)
    weights = 1 / measured[:, None]
    fitted = np.linalg.lstsq(design * weights, np.ones(len(rows)), rcond=None)[0] / 1e3
    ours = [A100_7B.base, A100_7B.per_decode, A100_7B.per_context_token]
    assert fitted == pytest.approx(ours, rel=0.01)
    error = np.abs(design @ ours * 1e3 / measured - 1)
    assert error.mean() < 0.027
    assert error.max() < 0.08
    assert A100_7B.seconds(0, 2048, 0) == pytest.approx(0.1395, rel=0.01)


def test_the_h100_model_matches_the_published_figures():
    for concurrency, measured in H100.items():
        step = H100_70B.seconds(concurrency, 10 * (concurrency - 1), 5250 * concurrency)
        assert step * 1e3 == pytest.approx(measured, rel=0.01)
    assert H100_70B.seconds(0, 5000, 0) == pytest.approx(0.40677, rel=0.015)
