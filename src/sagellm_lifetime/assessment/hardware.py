"""KV memory and step time of usual GPUs and model sizes: a table and two formulas.

KV tokens:

    ((0.92 · memory - 2.5 GiB) · GPUs - weights) / (2 · layers · KV heads · head size · 2 bytes)

0.92 is vLLM's default for ``--gpu-memory-utilization``; 2.5 GiB stand for activations, CUDA graphs
and buffers of one GPU. The KV cache is in 16 bits.

Step time (a roofline: Williams et al. 2009), seconds:

    1.3 ms + weights / (0.8 · bandwidth) + 50 µs · layers (where the GPUs are several)
    + 15 µs · sequences
    + 2 · parameters / (0.68 · FLOP/s, fp8: 0.45) · prefill tokens
    + bytes of a token / (0.88 · bandwidth) · tokens in the cache

The constants are fitted to the two published tables of :mod:`sagellm_lifetime.replay.cost`;
:func:`deviation` returns by how much the formula misses them. Sources: the data sheets of the
vendors (dense figures, without sparsity) and the models' ``config.json``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sagellm_lifetime.core.errors import RequestError, UnknownNameError
from sagellm_lifetime.replay.cost import A100_7B, H100_70B, StepCost

GIB: Final = 1024**3
UTILIZATION: Final = 0.92
OVERHEAD_BYTES: Final = 2.5 * GIB


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        memory_gib: memory that a process sees, GiB.
        bandwidth: of the memory, bytes a second.
        flops: dense operations a second in 16 bits.
        flops_fp8: the same in 8 bits; those of 16 bits where it has none.
        max_num_seqs: vLLM's default of its API server on this GPU.
        max_num_batched_tokens: the same.
    """

    memory_gib: float
    bandwidth: float
    flops: float
    flops_fp8: float
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model that decide its memory and speed.

    Attributes:
        example: a model of this shape.
        parameters: number of parameters.
        layers: number of layers.
        kv_heads: KV heads of a layer.
        head_size: size of a head.
        weight_bytes: bytes of a parameter.
    """

    example: str
    parameters: float
    layers: int
    kv_heads: int
    head_size: int = 128
    weight_bytes: int = 2

    @property
    def token_bytes(self) -> int:
        """Return the bytes of a token in the KV cache, in 16 bits."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2

    @property
    def bytes(self) -> float:
        """Return the bytes of the weights."""
        return self.parameters * self.weight_bytes


GPUS: Final[dict[str, Gpu]] = {
    "l4": Gpu(22.0, 0.30e12, 121e12, 242e12),
    "l40s": Gpu(44.5, 0.864e12, 362e12, 733e12),
    "a100-40g": Gpu(39.4, 1.555e12, 312e12, 312e12),
    "a100": Gpu(79.2, 2.039e12, 312e12, 312e12),
    "h100": Gpu(79.2, 3.35e12, 989e12, 1979e12, 1024, 8192),
    "h200": Gpu(139.8, 4.8e12, 989e12, 1979e12, 1024, 8192),
    "b200": Gpu(178.0, 8.0e12, 2250e12, 4500e12, 1024, 16384),
    "mi300x": Gpu(191.5, 5.3e12, 1307e12, 2614e12, 1024, 16384),
}
MODELS: Final[dict[str, ModelShape]] = {
    "1.5b": ModelShape("Qwen2.5-1.5B", 1.54e9, 28, 2),
    "3b": ModelShape("Llama-3.2-3B", 3.21e9, 28, 8),
    "7b": ModelShape("Qwen2.5-7B", 7.62e9, 28, 4),
    "8b": ModelShape("Llama-3.1-8B", 8.03e9, 32, 8),
    "14b": ModelShape("Qwen2.5-14B", 14.8e9, 48, 8),
    "32b": ModelShape("Qwen2.5-32B", 32.8e9, 64, 8),
    "70b": ModelShape("Llama-3.1-70B", 70.6e9, 80, 8),
}
_LLAMA_2_7B: Final = ModelShape("Llama-2-7B", 6.74e9, 32, 32)
FP8: Final = "-fp8"


def gpu_of(name: str) -> tuple[Gpu, int]:
    """Return the GPU of a name and how many: ``h100``, ``2xh100``.

    Raises:
        UnknownNameError: no GPU has the name.

    >>> gpu_of("4xh100")[1]
    4
    """
    found = re.fullmatch(r"(?:([1-9]\d?)x)?(.+)", name.strip().lower())
    count, kind = found.groups() if found else (None, name)
    if kind not in GPUS:
        raise UnknownNameError("GPU", name, [*GPUS, "2xh100 and so on"])
    return GPUS[kind], int(count or 1)


def model_of(size: str) -> ModelShape:
    """Return the shape of a model size: ``8b``, or ``8b-fp8`` with weights of 8 bits.

    Raises:
        UnknownNameError: no shape has the name.

    >>> model_of("8B").token_bytes
    131072
    """
    name = size.strip().lower()
    shape = MODELS.get(name.removesuffix(FP8))
    if shape is None:
        raise UnknownNameError("model size", size, [*MODELS, f"70b{FP8} and so on"])
    if not name.endswith(FP8):
        return shape
    return ModelShape(
        shape.example, shape.parameters, shape.layers, shape.kv_heads, shape.head_size, 1
    )


def kv_tokens(gpu: str, size: str) -> int:
    """Return the tokens that the KV cache holds, by the formula of this module.

    Raises:
        UnknownNameError: no GPU or no model has the name.
        RequestError: the model does not fit.

    >>> kv_tokens("h100", "8b")
    453893
    """
    (card, count), model = gpu_of(gpu), model_of(size)
    free = (UTILIZATION * card.memory_gib * GIB - OVERHEAD_BYTES) * count - model.bytes
    if free < 1024 * model.token_bytes:
        raise RequestError(
            f"a {size} model needs {model.bytes / GIB:,.0f} GiB for its weights, which leaves no "
            f"room on {gpu}: name several, as 2xh100, or weights of 8 bits, as 70b{FP8}"
        )
    return int(free / model.token_bytes)


def step_cost(gpu: str, size: str) -> StepCost:
    """Return the step cost of a GPU and a model size, by the formula of this module.

    Raises:
        UnknownNameError: no GPU or no model has the name.

    >>> round(1e3 * step_cost("h100", "8b").base, 1)
    7.3
    """
    missed = " and ".join(f"{100 * worst:.0f} % ({name})" for name, worst in deviation().items())
    cost = _roofline(*gpu_of(gpu), model_of(size))
    return StepCost(
        f"{gpu} {size}",
        *cost,
        source=f"roofline formula for {gpu} and {model_of(size).example}, not measured on them",
        fit=f"misses the two published tables it was fitted to by up to {missed}",
    )


def deviation() -> dict[str, float]:
    """Return by how much the formula misses each published table at most, as a share.

    Over decode steps of 1 to 64 sequences of 1,000 tokens, and over a prefill of 2,048.

    >>> sorted(deviation())
    ['a100-7b', 'h100-70b']
    """
    seventy = ModelShape("Llama-3.3-70B", 70.6e9, 80, 8, 128, 1)
    pairs = [(A100_7B, "a100", 1, _LLAMA_2_7B), (H100_70B, "h100", 2, seventy)]
    points = [(n, 0, 1000 * n) for n in (1, 2, 4, 8, 16, 32, 64)] + [(0, 2048, 0)]
    missed = {}
    for table, gpu, count, shape in pairs:
        ours = StepCost("", *_roofline(GPUS[gpu], count, shape))
        missed[table.name] = max(
            abs(ours.seconds(*point) / table.seconds(*point) - 1) for point in points
        )
    return missed


def _roofline(card: Gpu, count: int, model: ModelShape) -> tuple[float, float, float, float]:
    """Return base, per sequence, per prefill token and per token in the cache, seconds."""
    bandwidth = card.bandwidth * count
    together = 2 * 25e-6 * model.layers if count > 1 else 0.0  # two all-reduces a layer
    base = 1.3e-3 + model.bytes / (0.8 * bandwidth) + together
    fp8 = model.weight_bytes == 1
    speed = (0.45 * card.flops_fp8 if fp8 else 0.68 * card.flops) * count
    return base, 15e-6, 2 * model.parameters / speed, model.token_bytes / (0.88 * bandwidth)
