"""What a workload asks for and answers, before anyone aborts or caps anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagellm_lifetime.workloads.arrivals import renewal
from sagellm_lifetime.workloads.joint import Floats, Ints, pooled
from sagellm_lifetime.workloads.sequence import correlated, turns
from sagellm_lifetime.workloads.store import Group, Profile, Sessions

Names = NDArray[np.str_]


@dataclass
class Draws:
    """Parallel arrays, one entry per request; ``session`` and ``turn`` only where there are any."""

    group: Ints
    prompt: Ints
    output: Ints
    arrival: Floats
    session: Ints | None = None
    turn: Ints | None = None


def independent(profile: Profile, rng: np.random.Generator, n: int) -> Draws:
    """Requests without sessions; with probability ``repeat`` the client of the last one again."""
    group = _groups(rng, profile.groups, n)
    if profile.repeat > 0:
        fresh = rng.random(n) >= profile.repeat
        fresh[:1] = True
        group = group[np.maximum.accumulate(np.where(fresh, np.arange(n), 0))]
    prompt_at, output_at = rng.random(n), rng.random(n)
    prompt, output = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for number, one in enumerate(profile.groups):
        mine = group == number
        prompt[mine] = one.joint.prompts(prompt_at[mine])
        output[mine] = one.joint.outputs(prompt[mine], output_at[mine])
    return Draws(group, prompt, output, _arrivals(profile, rng, n))


def conversations(profile: Profile, sessions: Sessions, rng: np.random.Generator, n: int) -> Draws:
    """Requests in sessions: prompts grow from turn to turn, outputs of a session resemble."""
    sizes = _sizes(sessions, rng, n)
    session = np.repeat(np.arange(len(sizes)), sizes)
    turn = turns(sizes)
    group = _kinds(profile, sessions, rng, turn)
    prompt_at = correlated(rng, sizes, sessions.prompt_persistent)
    prompt_at = prompt_at[np.lexsort((prompt_at, session))]
    everyone = pooled([g.joint for g in profile.groups], [g.share for g in profile.groups])
    prompt = everyone.prompts(prompt_at)
    output_at = correlated(rng, sizes, sessions.persistent, sessions.recent, sessions.decay)
    output = np.zeros(n, dtype=np.int64)
    for number, one in enumerate(profile.groups):
        mine = group == number
        output[mine] = one.joint.outputs(prompt[mine], output_at[mine])
    arrival = _turn_times(sessions, rng, sizes, turn)
    order = np.argsort(arrival, kind="stable")
    if profile.gap_mean_s is not None:  # the order of the turns, the clock of the whole service
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
    """Sizes of sessions that hold ``n`` turns together; the last one is cut to fit."""
    sizes = sessions.sizes.draw_integers(rng, max(n, 1))
    enough = int(np.searchsorted(np.cumsum(sizes), n)) + 1 if n else 0
    sizes = sizes[:enough]
    if n:
        sizes[-1] -= int(sizes.sum()) - n
    return sizes


def _kinds(profile: Profile, sessions: Sessions, rng: np.random.Generator, turn: Ints) -> Ints:
    """A Markov chain over the groups, started afresh by every session."""
    if sessions.transitions is None:
        return _groups(rng, profile.groups, len(turn))
    number = {group.name: index for index, group in enumerate(profile.groups)}
    table = np.zeros((len(number) + 1, len(number)))
    for before, after in sessions.transitions.items():
        row = number.get(before, len(number))
        for kind, weight in after.items():
            table[row, number[kind]] = weight
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
    """Seconds at which the turns arrive, before any clock of the whole service is laid over."""
    gaps = np.where(turn == 0, 0.0, sessions.gaps.draw(rng, len(turn)))
    elapsed = np.cumsum(gaps)
    elapsed -= np.repeat(elapsed[np.cumsum(sizes) - sizes], sizes)
    if sessions.starts_every_s is not None:
        starts = renewal(rng, len(sizes), sessions.starts_every_s, 1.0)
    else:  # the service's own clock follows: only the interleaving matters
        starts = rng.random(len(sizes)) * max(len(turn), 1) * 0.3
    return elapsed + np.repeat(starts, sizes)
