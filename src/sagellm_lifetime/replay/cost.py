"""The duration of an engine's step, in seconds, from its contents."""

from __future__ import annotations

from dataclasses import dataclass

from sagellm_lifetime.core.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class StepCost:
    """A linear model of one step.

    Attributes:
        name: its name in ``--cost-model``.
        base: seconds of every step: reading the weights, launching, sampling.
        per_decode: seconds per sequence that generates one token.
        per_prefill_token: seconds per prompt (or recomputed) token.
        per_context_token: seconds per token in the KV cache of the running sequences: reading it.
        source: origin of the figures.
        fit: deviation of the model from the figures.
    """

    name: str
    base: float
    per_decode: float
    per_prefill_token: float
    per_context_token: float = 0.0
    source: str = ""
    fit: str = ""

    def seconds(self, decodes: int, prefill_tokens: int, context_tokens: int) -> float:
        """Return the seconds of a step.

        Args:
            decodes: sequences that generate a token.
            prefill_tokens: tokens computed as prefill.
            context_tokens: tokens in the cache of the running sequences.
        """
        return (
            self.base
            + self.per_decode * decodes
            + self.per_prefill_token * prefill_tokens
            + self.per_context_token * context_tokens
        )


CPU_SMALL = StepCost(
    "cpu-small",
    base=46.4e-3,
    per_decode=2.84e-3,
    per_prefill_token=1.68e-3,
    source="measured on the engine: SmolLM2-135M-Instruct, float32, vLLM 0.32.0, 2 CPU threads",
    fit="R² 0.974; with it the replay made the engine's own schedule in 6 of 6 configurations",
)
"""A 135M model on two CPU cores."""

A100_7B = StepCost(
    "a100-7b",
    base=9.61e-3,
    per_decode=15.5e-6,
    per_prefill_token=63.3e-6,
    per_context_token=0.294e-6,
    source=(
        "Llama-2-7B, fp16, one A100-80G: LMDeploy 0.1.0a1, docs/en/benchmark/a100_fp16.md "
        "(github.com/InternLM/lmdeploy), median token latency of the 18 rows whose batch fits in "
        "memory (batch 1-64, context up to 98,000 tokens); prefill from the first-token latency of "
        "2,048 tokens"
    ),
    fit="R² 0.994, mean error 2.6 %, largest 7.7 % (the table is rounded to 1 ms)",
)
"""Llama-2-7B on one A100: the default. 0.29 µs a context token is 0.5 MB at 1.8 TB/s, near the
card's 2.0; 80 GB leave room for about 7,000 blocks of 16 tokens."""

H100_70B = StepCost(
    "h100-70b",
    base=18.5e-3,
    per_decode=0.0,
    per_prefill_token=78.5e-6,
    per_context_token=10e-9,
    source=(
        "Llama-3.3-70B-Instruct, fp8, two H100-80G: NVIDIA NIM LLM benchmarking guide 1.0.0, "
        "Performance, container 1.8.0, 5,000 tokens in and 500 out, concurrency 1-50 "
        "(docs.nvidia.com/nim/benchmarking/llm/1.0.0/performance)"
    ),
    fit=(
        "inter-token latency of 4 rows within 1 %, first token of 5,000 within 1 % and of 500 "
        "(+ 21 %); decodes and their context cannot be told apart there, all is on the context"
    ),
)
"""Llama-3.3-70B on two H100. At a concurrency of c the published inter-token latency includes the
prefill of the other requests: base + c · 5,250 · context + 10 (c - 1) · prefill."""

MODELS = {model.name: model for model in (CPU_SMALL, A100_7B, H100_70B)}
DEFAULT = A100_7B.name


def cost_model(name: str) -> StepCost:
    """Return the cost model of a name.

    Raises:
        UnknownNameError: if there is none.
    """
    if name not in MODELS:
        raise UnknownNameError("cost model", name, list(MODELS))
    return MODELS[name]
