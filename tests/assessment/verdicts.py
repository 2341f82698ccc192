"""Verdicts made by hand, for what is said and drawn of them; no replay is run."""

from types import SimpleNamespace

from sagellm_lifetime.assessment.capacity import Highest
from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.intervals import Range
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.predictor_choice import PredictorChoice
from sagellm_lifetime.assessment.replay_part import Load, ReplayPart
from sagellm_lifetime.assessment.replays import DEFAULT, ORACLE, OURS, PROMPTS, TUNED
from sagellm_lifetime.assessment.steady import Figures
from sagellm_lifetime.assessment.verdict import Verdict


def figures(mean=10.0, *, within=0.9, waiting=0.5, kept_up=1.0, wait=4.0):
    return Figures(
        requests=100,
        mean_s=mean,
        p50_s=mean / 2,
        p99_s=mean * 4,
        ttft_s=mean / 5,
        p99_ttft_s=mean,
        worst_wait_s=wait,
        within=within,
        waiting=waiting,
        kept_up=kept_up,
        preemptions=0,
    )


def load(multiple, default, ours, *, prompts=None, waiting=0.5, kept_up=1.0):
    """A load at which the means of two windows are ``default`` and ``ours``."""
    prompts = prompts or default
    several = {
        DEFAULT: [figures(mean, waiting=waiting, kept_up=kept_up) for mean in default],
        TUNED: [figures(mean, waiting=waiting, kept_up=kept_up) for mean in default],
        PROMPTS: [figures(mean, wait=9.0, waiting=waiting, kept_up=kept_up) for mean in prompts],
        OURS: [figures(mean, within=0.97, waiting=waiting, kept_up=kept_up) for mean in ours],
        ORACLE: [figures(mean, within=0.98, waiting=waiting, kept_up=kept_up) for mean in ours],
    }
    return Load(multiple, dict.fromkeys(several, 0.0), several)


def replay(loads, default, ours, *, tuned=None, prompts=None, free=None, mark=0.1, unit=5.0):
    """A replay with these capacities, a number a window."""
    many = {
        DEFAULT: default,
        TUNED: tuned or default,
        PROMPTS: prompts or default,
        OURS: ours,
    }
    capacity = {
        name: tuple(h if isinstance(h, Highest) else Highest(h) for h in several)
        for name, several in many.items()
    }
    return ReplayPart(
        rate=unit,
        unit=unit,
        peak=1.5,
        loads=tuple(loads),
        capacity=capacity,
        free=Highest(free) if isinstance(free, float) else free,
        precision=1.08,
        watermarks={DEFAULT: 0.0, TUNED: mark, PROMPTS: 0.0, OURS: 0.0},
        requests=300,
        left_out=2,
        of=900,
        notes=("a note",),
        version="0.32.0",
        runs=70,
    )


def choice(mae=50.0, *, saved=(0.5, 0.4, 0.6), lightgbm=60.0):
    return PredictorChoice(
        name="survival",
        predictor=SimpleNamespace(),
        candidates={"survival": 51.0, "linear": 70.0},
        rows=(600, 200, 400),
        by="time",
        online=True,
        mae=mae,
        baselines={"constant_median": 100.0, "residual_life": 80.0, "lightgbm": lightgbm},
        saved=Range(*saved),
        coverage_90=0.91,
        confidence_ece=0.04,
        within_10pct=0.2,
    )


def verdict(part, why="", predictor=None, options=(), objective=None):
    return Verdict(
        source="log <of> mine.csv",
        rows=1400,
        predictor=predictor or choice(),
        engine=Engine.of(gpu="a100", model_size="7b"),
        objective=objective or Objective(),
        replay=part,
        why_no_replay=why,
        options=options,
    )


def better():
    """Ours serves more and is faster at 2 times the load; nobody waits today."""
    loads = [load(1.0, [4, 4], [4, 4], waiting=0.0), load(2.0, [10, 12], [6, 9], kept_up=0.8)]
    return verdict(replay(loads, [1.0, 1.2], [1.3, 1.5]))
