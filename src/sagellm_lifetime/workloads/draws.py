"""Draw requests from a profile: clients, arrivals, lengths of prompts and answers.

Caps, cancellations and durations come afterwards (:mod:`.endings`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sagellm_lifetime.workloads.histograms import Floats, Ints, pooled
from sagellm_lifetime.workloads.store import Group, Profile, Sessions

Names = NDArray[np.str_]


@dataclass
class Draws:
    """Requests of a workload as parallel arrays, one entry each.

    Attributes:
        group: number of the request's group in the profile.
        prompt: prompt tokens.
        output: tokens the model generates if nothing stops it.
        arrival: seconds from the first arrival.
        session: number of the session, ``None`` where the workload has none.
        turn: number of the turn in its session, from 0; ``None`` where there are no sessions.
    """

    group: Ints
    prompt: Ints
    output: Ints
    arrival: Floats
    session: Ints | None = None
    turn: Ints | None = None


def independent(profile: Profile, rng: np.random.Generator, n: int) -> Draws:
    """Return ``n`` requests without sessions.

    With probability ``profile.repeat`` a request has the client of the previous one.
    """
    group = _groups(rng, profile.groups, n)
    if profile.repeat > 0:
        fresh = rng.random(n) >= profile.repeat
        fresh[:1] = True
        group = group[np.maximum.accumulate(np.where(fresh, np.arange(n), 0))]
    prompt_uniform, output_uniform = rng.random(n), rng.random(n)
    prompt, output = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for number, member in enumerate(profile.groups):
        is_member = group == number
        prompt[is_member] = member.joint.prompts(prompt_uniform[is_member])
        output[is_member] = member.joint.outputs(prompt[is_member], output_uniform[is_member])
    return Draws(group, prompt, output, _arrivals(profile, rng, n))


def conversations(profile: Profile, sessions: Sessions, rng: np.random.Generator, n: int) -> Draws:
    """Return ``n`` requests in sessions, sorted by arrival.

    Prompts grow from turn to turn, and the answers of a session are of similar length.
    """
    sizes = _sizes(sessions, rng, n)
    session = np.repeat(np.arange(len(sizes)), sizes)
    turn = turns(sizes)
    group = _session_groups(profile, sessions, rng, turn)
    prompt_uniform = correlated(rng, sizes, sessions.prompt_persistent)
    prompt_uniform = prompt_uniform[np.lexsort((prompt_uniform, session))]
    joint = pooled([g.joint for g in profile.groups], [g.share for g in profile.groups])
    prompt = joint.prompts(prompt_uniform)
    output_uniform = correlated(rng, sizes, sessions.persistent, sessions.recent, sessions.decay)
    output = np.zeros(n, dtype=np.int64)
    for number, member in enumerate(profile.groups):
        is_member = group == number
        output[is_member] = member.joint.outputs(prompt[is_member], output_uniform[is_member])
    arrival = _turn_times(sessions, rng, sizes, turn)
    order = np.argsort(arrival, kind="stable")
    if profile.gap_mean_s is not None:
        # The order of the turns is kept, with the arrival times of the service.
        times = _arrivals(profile, rng, n)
        arrival[order] = times
    return Draws(
        group[order], prompt[order], output[order], arrival[order], session[order], turn[order]
    )


def _groups(rng: np.random.Generator, groups: tuple[Group, ...], n: int) -> Ints:
    shares = np.asarray([group.share for group in groups])
    return rng.choice(len(groups), size=n, p=shares / shares.sum())


def _arrivals(profile: Profile, rng: np.random.Generator, n: int) -> Floats:
    if profile.gap_mean_s is None or profile.gap_cv is None:
        raise ValueError(f"profile {profile.name!r} has no arrival process of its own")
    return renewal(rng, n, profile.gap_mean_s, profile.gap_cv)


def _sizes(sessions: Sessions, rng: np.random.Generator, n: int) -> Ints:
    """Return the sizes of sessions that together hold ``n`` turns; the last one is cut to fit."""
    sizes = sessions.sizes.draw_integers(rng, max(n, 1))
    enough = int(np.searchsorted(np.cumsum(sizes), n)) + 1 if n else 0
    sizes = sizes[:enough]
    if n:
        sizes[-1] -= int(sizes.sum()) - n
    return sizes


def _session_groups(
    profile: Profile, sessions: Sessions, rng: np.random.Generator, turn: Ints
) -> Ints:
    """Return the group of each turn: a Markov chain, started afresh by every session."""
    if sessions.transitions is None:
        return _groups(rng, profile.groups, len(turn))
    number = {group.name: index for index, group in enumerate(profile.groups)}
    table = np.zeros((len(number) + 1, len(number)))
    for before, after in sessions.transitions.items():
        row = number.get(before, len(number))
        for name, weight in after.items():
            table[row, number[name]] = weight
    cumulative = np.cumsum(table / table.sum(axis=1, keepdims=True), axis=1)
    chosen = np.zeros(len(turn), dtype=np.int64)
    before_first = len(number)
    last = before_first
    for index, (at, point) in enumerate(zip(turn.tolist(), rng.random(len(turn)), strict=True)):
        row = cumulative[before_first if at == 0 else last]
        last = min(int(np.searchsorted(row, point, side="right")), len(number) - 1)
        chosen[index] = last
    return chosen


def _turn_times(sessions: Sessions, rng: np.random.Generator, sizes: Ints, turn: Ints) -> Floats:
    """Return the arrival of each turn in seconds, on the sessions' own clocks."""
    gaps = np.where(turn == 0, 0.0, sessions.gaps.draw(rng, len(turn)))
    elapsed = np.cumsum(gaps)
    elapsed -= np.repeat(elapsed[np.cumsum(sizes) - sizes], sizes)
    if sessions.starts_every_s is not None:
        starts = renewal(rng, len(sizes), sessions.starts_every_s, 1.0)
    else:  # the service's clock replaces these times, so only their order matters
        starts = rng.random(len(sizes)) * max(len(turn), 1) * 0.3
    return elapsed + np.repeat(starts, sizes)


def renewal(rng: np.random.Generator, n: int, mean_s: float, cv: float) -> Floats:
    """Return ``n`` ascending arrival times in seconds, the first 0, with gamma-distributed gaps.

    Daily and weekly rhythms of a trace are not reproduced.

    Args:
        rng: source of randomness.
        n: number of arrivals.
        mean_s: mean gap in seconds.
        cv: coefficient of variation of the gaps; 1 is a Poisson stream, more means bursts.
    """
    shape = 1.0 / cv**2
    times = np.cumsum(rng.gamma(shape, mean_s / shape, size=n))
    return times - times[0] if n else times


def correlated(
    rng: np.random.Generator, sizes: Ints, persistent: float, recent: float = 0.0, decay: float = 0
) -> Floats:
    """Return one uniform number per turn, sessions one after the other (Gaussian copula).

    Over all sessions the numbers are uniform; within a session, the normal scores of turns ``k``
    apart correlate by ``persistent + recent * decay ** k``.
    """
    total = int(sizes.sum())
    first = np.cumsum(sizes) - sizes
    score = np.sqrt(persistent) * np.repeat(rng.standard_normal(len(sizes)), sizes)
    score += np.sqrt(1.0 - persistent - recent) * rng.standard_normal(total)
    if recent > 0:
        shock = rng.standard_normal(total)
        wave = shock.copy()
        for turn in range(1, int(sizes.max(initial=1))):
            at = first[sizes > turn] + turn
            wave[at] = decay * wave[at - 1] + np.sqrt(1.0 - decay**2) * shock[at]
        score += np.sqrt(recent) * wave
    cdf = NormalDist().cdf
    return np.fromiter((cdf(value) for value in score.tolist()), dtype=np.float64, count=total)


def turns(sizes: Ints) -> Ints:
    """Return 0, 1, … within each session, sessions one after the other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
