"""The censored likelihood equals what it says, computed by brute force; its gradient is right."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sagellm_lifetime.core.grid import BINS, EDGES, bin_of  # noqa: E402
from sagellm_lifetime.networks.head import (  # noqa: E402
    ABSOLUTE,
    BASIS,
    OUTPUTS,
    corrected_row,
    corrections_by_bin,
    log_losses,
)
from sagellm_lifetime.networks.loss import Targets, negative_log_likelihood, penalty  # noqa: E402


def brute_force(row: np.ndarray, age: int, length: int, censored: bool) -> float:
    """-log P(L > c | L > a), or -log P(L in its bin, beyond a | L > a), token by token."""

    def h(n: float) -> float:
        return float(np.interp(n, EDGES, row))

    if censored:
        return max(h(length) - h(age), 0.0)
    length = max(length, age + 1)
    k = bin_of(length)
    low, high = max(float(EDGES[k]), age), float(EDGES[k + 1])
    return h(low) - h(age) - float(np.log(-np.expm1(-(h(high) - h(low)))))


def drawn(seed: int, count: int = 40):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, 0.5, (count, OUTPUTS)).astype(np.float32)
    base = rng.normal(-3.0, 0.7, (count, BINS)).astype(np.float32)
    ages = np.where(rng.random(count) < 0.4, 0, rng.integers(1, 2000, count))
    lengths = ages + rng.integers(0, 1500, count)
    censored = rng.random(count) < 0.3
    return outputs, base, ages, lengths, censored


def loss_of(outputs, base, ages, lengths, censored) -> float:
    targets = Targets(ages, lengths, censored)
    return float(negative_log_likelihood(torch.tensor(outputs), torch.tensor(base), targets))


@pytest.mark.parametrize("seed", range(4))
def test_loss_is_the_brute_force_likelihood(seed):
    outputs, base, ages, lengths, censored = drawn(seed)
    wanted = []
    for i in range(len(ages)):
        corrections = np.concatenate([outputs[i, :ABSOLUTE] @ BASIS, outputs[i, ABSOLUTE:]])
        by_bin = corrections_by_bin(corrections, int(ages[i]))
        row = corrected_row(by_bin, base[i]).astype(np.float64)
        wanted.append(brute_force(row, int(ages[i]), int(lengths[i]), bool(censored[i])))
    for i, value in enumerate(wanted):
        one = slice(i, i + 1)
        found = loss_of(outputs[one], base[one], ages[one], lengths[one], censored[one])
        assert found == pytest.approx(value, rel=2e-3, abs=2e-3), (ages[i], lengths[i], censored[i])
    assert loss_of(outputs, base, ages, lengths, censored) == pytest.approx(
        np.mean(wanted), rel=1e-3
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_without_pytorch_is_the_same(seed):
    outputs, base, ages, lengths, censored = drawn(seed)
    shares = np.array([1.0, 0.5, 0.0])
    for i in range(len(ages)):
        one = slice(i, i + 1)
        corrections = np.concatenate([outputs[i, :ABSOLUTE] @ BASIS, outputs[i, ABSOLUTE:]])
        by_bin = corrections_by_bin(corrections, int(ages[i]))
        outcome = int(ages[i]), int(lengths[i]), bool(censored[i])
        found = log_losses(by_bin, base[i], shares, outcome)
        wanted = [
            loss_of(share * outputs[one], base[one], ages[one], lengths[one], censored[one])
            for share in shares.astype(np.float32)
        ]
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4), outcome
        # A network that says NaN is not taken for the table.
        broken = log_losses(np.full(BINS, np.nan), base[i], shares, outcome)
        assert broken[2] == pytest.approx(found[2])


def test_gradient_is_the_slope():
    outputs, base, ages, lengths, censored = drawn(9, count=6)
    targets = Targets(ages, lengths, censored)
    x = torch.tensor(outputs, dtype=torch.float32, requires_grad=True)
    negative_log_likelihood(x, torch.tensor(base), targets).backward()
    rng = np.random.default_rng(0)
    for _ in range(12):
        direction = rng.normal(size=outputs.shape).astype(np.float32)
        step = 1e-2
        rise = loss_of(outputs + step * direction, base, ages, lengths, censored) - loss_of(
            outputs - step * direction, base, ages, lengths, censored
        )
        slope = float((x.grad * torch.tensor(direction)).sum())
        assert rise / (2 * step) == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_finite_where_it_hurts():
    base = np.full((6, BINS), -11.5, dtype=np.float32)
    outputs = np.zeros((6, OUTPUTS), dtype=np.float32)
    outputs[3:] = 40.0
    ages = np.array([0, 10**6, 0, 0, 5, 131_072])
    lengths = np.array([10**7, 10**6 + 1, 0, 1, 5, 131_073])
    censored = np.array([False, False, True, False, True, True])
    x = torch.tensor(outputs, requires_grad=True)
    loss = negative_log_likelihood(x, torch.tensor(base), Targets(ages, lengths, censored))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def test_censored_at_once_says_nothing():
    outputs, base, *_ = drawn(1, count=2)
    ages = np.array([0, 70])
    assert loss_of(outputs, base, ages, ages, np.array([True, True])) == 0.0


def test_penalty_is_zero_only_for_no_correction():
    assert float(penalty(torch.zeros(3, OUTPUTS))) == 0.0
    assert float(penalty(torch.ones(3, OUTPUTS))) > 0.0
