"""Invented workloads of known difficulty; none of their figures was measured."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.workloads.endings import seconds
from sagellm_lifetime.workloads.generate import history_frame
from sagellm_lifetime.workloads.histograms import Floats, Ints

TEMPLATES = 12
ARRIVALS_PER_S = 5.0


def regular(n: int, seed: int = 0) -> pl.DataFrame:
    """Return regular batch work: 12 templates, each with answers of nearly one length.

    ``client_id`` names the template. Output medians are spaced logarithmically from 30 to 600
    tokens, prompts from 200 to 4000 in another order; both are log-normal within a template, the
    outputs with a spread of 3 to 5 %, the prompts of 10 %. Knowing the template, the best
    possible mean error is 6.5 tokens, and 96 % or more of each template are within 10 %.

    >>> regular(1000)["client_id"].n_unique()
    12
    """
    rng = np.random.default_rng(np.random.SeedSequence([1, seed]))
    medians = np.geomspace(30, 600, TEMPLATES)
    prompts = np.geomspace(200, 4000, TEMPLATES)[(np.arange(TEMPLATES) * 5) % TEMPLATES]
    spreads = 0.03 + 0.02 * ((np.arange(TEMPLATES) * 7) % TEMPLATES) / (TEMPLATES - 1)
    template = rng.integers(0, TEMPLATES, size=n)
    prompt = _lognormal(rng, prompts[template], np.full(n, 0.1))
    output = _lognormal(rng, medians[template], spreads[template])
    clients = [f"template-{index + 1:02d}" for index in template.tolist()]
    return _frame("regular", rng, prompt, output, client_id=clients)


def specification(n: int, seed: int = 0) -> pl.DataFrame:
    """Return the data of the specification's own benchmark.

    ``max_length`` is an integer drawn from 50 to 500, both ends possible, ``actual_length`` is
    ``int(max_length * U(0.6, 0.9))``; prompts of 10 to 200 tokens are unrelated. Knowing only
    ``max_length``, nothing predicts better than a mean error of 21 tokens.

    >>> rows = specification(1000)
    >>> (rows["actual_length"] < rows["max_length"]).all()
    True
    """
    rng = np.random.default_rng(np.random.SeedSequence([2, seed]))
    most = rng.integers(50, 500, size=n, endpoint=True)
    output = np.floor(most * rng.uniform(0.6, 0.9, size=n)).astype(np.int64)
    prompt = rng.integers(10, 200, size=n, endpoint=True)
    return _frame("specification", rng, prompt, output, max_length=most)


def _lognormal(rng: np.random.Generator, median: Floats, spread: Floats) -> Ints:
    noise = np.exp(spread * rng.standard_normal(len(median)))
    return np.maximum(np.rint(median * noise).astype(np.int64), 1)


def _frame(
    name: str,
    rng: np.random.Generator,
    prompt: Ints,
    output: Ints,
    **columns: list[str] | Ints,
) -> pl.DataFrame:
    n = len(output)
    return history_frame(
        name,
        n,
        {
            "arrival_time": np.cumsum(rng.exponential(1.0 / ARRIVALS_PER_S, size=n)),
            "prompt_length": prompt,
            "actual_length": output,
            "actual_time": seconds(rng, prompt, output),
            "finish_reason": ["stop"] * n,
            **columns,
        },
    )
