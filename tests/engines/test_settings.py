"""What a live engine is told: a value of a wrong type or range is refused as it is made."""

import json
from dataclasses import fields

import pytest

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.vllm import settings
from sagellm_lifetime.vllm.settings import KEY, LiveSettings

WRONG = [
    {"client_from": None},
    {"client_from": "ip"},
    {"client_from": "header:"},
    {"fleet": "a folder, but nothing is learned"},
    {"fleet": "http://cache"},
    {"fleet": "redis://"},
    {"fleet": 7},
    {"fleet_every_s": 0},
    {"share": "0.2"},
    {"share": None},
    {"share": float("nan")},
    {"share": True},
    {"share": [0.1]},
    {"floor_s": "2ms"},
    {"floor_s": -0.001},
    {"floor_s": float("inf")},
    {"limit_s": 0},
    {"limit_s": -2.5},
    {"limit_s": 10**400},
    {"limit_s": "3"},
    {"pause_s": {}},
    {"pause_s": -1},
    {"learn_every_s": 1e300},
    {"learn_every_s": 0},
    {"watermark": 7},
    {"watermark": -0.1},
    {"watermark": "5%"},
    {"min_confidence": "high"},
    {"min_confidence": 50},
    {"width": 64.0},
    {"width": -1},
    {"width": 10**9},
    {"width": False},
    {"learn": "no"},
    {"predict": "false"},
    {"predict": 1},
    {"signals": None},
    {"hidden": 1},
    {"content": 0},
    {"mode": "ACT"},
    {"mode": ["act"]},
    {"mode": None},
    {"policy": {"name": "sjf"}},
    {"policy": "fastest"},
    {"predictor": "oracle"},
    {"predictor": ""},
    {"predictor": 3},
    {"checkpoint": 5},
    {"state": None},
    {"state": "a\0b"},
    {"state": "\ud800"},
    {"record": "x/\ude00"},
    {"checkpoint": "\ud83d"},
    {"record": True},
    {"switchback_period_s": 0},
    {"record": ["a"]},
]


@pytest.mark.parametrize("said", WRONG, ids=str)
def test_a_wrong_value_is_refused_by_its_name(said):
    ((name, _),) = said.items()
    for make in (LiveSettings.of, lambda wrong: LiveSettings(**wrong)):
        with pytest.raises(LifetimeError, match=rf"\b{name}\b") as raised:
            make(said)
        assert "\n" not in str(raised.value)
        assert isinstance(raised.value, ValueError)


def test_every_setting_is_checked():
    kinds = [*settings.FLAGS, *settings.NAMES, *settings.PATHS, *settings.RANGES]
    kinds += [*settings.PLACES, *settings.SOURCED]
    assert sorted(kinds) == sorted(field.name for field in fields(LiveSettings))
    wrong = {name for said in WRONG for name in said}
    assert wrong == set(kinds)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"share": "0.2"}, "share must be a number from 0 to 1, got '0.2'"),
        ({"learn": "yes"}, "learn must be true or false, got 'yes'"),
        ({"width": 1.5}, "width must be a whole number from 0 to 2048, got 1.5"),
        ({"state": None}, "state must be text, got null"),
        ({"watermark": 20}, "watermark must be a number from 0 to 0.9, got 20"),
    ],
)
def test_the_line_says_what_is_allowed_and_what_was_said(said, told):
    with pytest.raises(LifetimeError) as raised:
        LiveSettings.of(said)
    assert str(raised.value) == f"lifetime settings: {told}"


@pytest.mark.parametrize(
    "value", ["x" * 100_000, list(range(100_000)), 10**6000, {"a": "b" * 9999}], ids=type
)
def test_a_long_value_is_cut(value):
    for name in ("share", "mode", "learn", "policy", "state"):
        if name == "state" and isinstance(value, str):
            continue
        with pytest.raises(LifetimeError) as raised:
            LiveSettings.of({name: value})
        assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("limits", "limit_s"), ("limit", "limit_s"), ("learning", "learn"), ("modus", "mode")],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(LifetimeError, match=f"unknown key '{key}': did you mean {nearest}"):
        LiveSettings.of({"mode": "act", key: 1})


def test_an_unknown_key_like_no_other_names_them_all():
    for key in ("zzz", 7):
        with pytest.raises(LifetimeError, match="there are predict, mode, policy"):
            LiveSettings.of({key: 1})


@pytest.mark.parametrize("said", [None, [], "act", 5, [["mode", "act"]]])
def test_no_object(said):
    with pytest.raises(LifetimeError, match="must be an object"):
        LiveSettings.of(said)


def test_what_would_do_nothing_is_refused():
    with pytest.raises(LifetimeError, match="mode 'act' needs predict"):
        LiveSettings(predict=False, mode="act")
    with pytest.raises(LifetimeError, match="learn true needs predict"):
        LiveSettings(predict=False, mode="off", learn=True)
    with pytest.raises(LifetimeError, match="signals true needs predict"):
        LiveSettings.of({"signals": True, "predict": False})
    assert LiveSettings.of({"signals": True, "predict": False, "record": "r"}).signals
    assert not LiveSettings.of({"predict": False, "mode": "off"}).predict
    with pytest.raises(LifetimeError, match="content needs record"):
        LiveSettings(content=True)


def test_right_values_are_taken_as_they_are():
    said = {
        **{"mode": "act", "policy": "sjf", "predictor": "", "checkpoint": "a/b", "learn": True},
        **{"share": 0, "floor_s": 1, "limit_s": 3600, "pause_s": 0.5, "watermark": 0},
        **{"min_confidence": 1, "width": 2048, "learn_every_s": 60, "state": "", "record": "r"},
        **{"content": True, "signals": True, "predict": True},
    }
    made = LiveSettings.of(json.loads(json.dumps(said)))
    assert {name: getattr(made, name) for name in said} == said
    assert LiveSettings.of(made.json()) == made
    assert LiveSettings.of({}) == LiveSettings()


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("said", [{"share": "0.2"}, None, "act", {"modes": "act"}], ids=str)
def test_an_engine_core_does_not_start_with_them(said, monkeypatch):
    from types import SimpleNamespace

    from sagellm_lifetime.vllm import live

    class Stock:
        def __init__(self):
            self.vllm_config = SimpleNamespace(
                additional_config={KEY: said},
                model_config=SimpleNamespace(runner_type="generate"),
            )

    class Live(live.LiveMixin, Stock):
        pass

    with pytest.raises(LifetimeError, match="lifetime settings: "):
        Live()
