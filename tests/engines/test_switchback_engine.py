"""A switchback in an engine: which mode when, what counts in which block, and the file."""

import json
import random

import pytest
from engine_help import Engine, fitted
from route_help import STATS, ask

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.evaluation.switchback import Design
from sagellm_lifetime.vllm.settings import LiveSettings
from sagellm_lifetime.vllm.switchback import FILE, Switchback, parse_blocks, summary

DESIGN = Design(100.0)


def running(file=None, label="x", now=1000.0):
    switchback = Switchback(DESIGN, file, label)
    switchback.start(now)
    return switchback


def served(switchback, block, seconds=2.0, first=0.5, offset=50.0, name="r"):
    """One request in a block, from its arrival to its end."""
    at = DESIGN.ends(block - 1) + offset
    switchback.arrived(name, at)
    switchback.output(3, [name], at + first)
    switchback.ended(name, seconds, "stop")


def test_it_begins_with_the_next_pair():
    switchback = running(now=1010.0)  # in block 10
    for block in (10, 11, 12, 13):
        served(switchback, block)
    assert switchback.advance(1400.0)
    assert [block.number for block in switchback._done] == [12, 13]
    assert switchback._done[0].numbers() == [12, 80.0, 1, 2.0, 1, 0.5, 3, 0]


def test_washout_tail_and_aborts_do_not_count():
    switchback = running()
    served(switchback, 12, offset=10.0, name="in the washout")
    served(switchback, 12, offset=95.0, name="in the tail")
    switchback.arrived("aborted", 1250.0)
    switchback.ended("aborted", 1.0, "abort")
    switchback.preempted(1205.0)
    switchback.preempted(1250.0)
    switchback.advance(1400.0)
    block = switchback._done[0]
    assert (block.requests, block.first_tokens, block.preemptions) == (0, 0, 1)
    assert block.tokens == 3  # of the request in the tail, generated in the measured time


def test_a_pair_waits_for_its_requests_but_not_for_ever():
    switchback = running()
    switchback.arrived("long", 1350.0)
    assert not switchback.advance(1500.0)
    switchback.ended("long", 170.0, "stop")
    assert switchback.advance(1521.0)
    assert switchback._done[1].latency_s == 170.0
    switchback.arrived("longer", 1550.0)
    assert not switchback.advance(1799.0)
    assert switchback.advance(1800.0)
    switchback.ended("longer", 999.0, "stop")  # too late
    switchback.output(1, ["longer"], 1900.0)
    assert sum(block.requests for block in switchback._done) == 1


def test_it_continues_after_a_restart_and_not_with_another_policy(tmp_path):
    file = tmp_path / FILE
    switchback = running(file)
    assert switchback.advance(1400.0)
    switchback.save()
    again = running(file, now=2010.0)
    assert [block.number for block in again._done] == [12, 13]
    assert again.advance(2500.0)
    assert [block.number for block in again._done] == [12, 13, 22, 23]
    assert running(file, label="y")._done == []
    other = Switchback(Design(50.0), file, "x")
    other.start(0.0)
    assert other._done == []
    file.write_bytes(b"[" * 10_000)
    assert running(file)._done == []


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b'{"design": {}, "label": 1, "blocks": []}',
     b'{"design": {"period_s": 0}, "label": "", "blocks": []}',
     b'{"design": {"period_s": 10}, "label": "", "blocks": [[1]]}'],
)  # fmt: skip
def test_a_file_that_is_damaged(content):
    with pytest.raises(ValueError, match="no blocks"):
        parse_blocks(content)


def test_engine_cores_are_added(tmp_path):
    folders = [tmp_path / f"engine-{rank}" for rank in range(2)]
    for rank, folder in enumerate(folders):
        folder.mkdir()
        switchback = running(folder / FILE)
        for block in range(12, 12 + 16 + 2 * rank):  # one core is a pair ahead
            served(switchback, block, seconds=1.0 if DESIGN.acts(block) else 2.0 + rank)
            switchback.advance(DESIGN.ends(block) + 1.0)
        switchback.save()
    status = {"running": True, "arm": "act"}
    found = summary(folders, [status, None])
    assert (found["pairs"], found["running"], found["period_s"]) == (8, True, 100.0)
    latency = found["effects"]["latency"]
    assert (latency["off"], latency["act"], latency["pairs"]) == (2.5, 1.0, 8)
    assert latency["high"] < 0.0
    assert found["effects"]["throughput"]["off"] == pytest.approx(6 / 80.0)
    assert summary([tmp_path], [None]) is None
    assert summary([tmp_path], [status])["effects"] == {}


def test_settings():
    assert LiveSettings(mode="switchback", state="x").switchback_period_s == 600.0
    for wrong, says in (
        ({"mode": "switchback"}, "switchback needs state"),
        ({"mode": "switchback", "state": "x", "predict": False}, "needs predict"),
        ({"switchback_period_s": 0.5}, "switchback_period_s must be a number"),
    ):
        with pytest.raises(LifetimeError, match=says):
            LiveSettings(**wrong)


def load(engine, seconds):
    """Bursts of requests that are too many for the memory, each served before the next one comes.

    A step takes 10 ms. With a queue that never empties, what acting leaves behind would stay.
    """
    ends, due, draw = engine.now + seconds, engine.now, random.Random(0)
    service = engine.scheduler._service
    while engine.now < ends:
        if engine.now >= due:
            due += draw.uniform(5.5, 6.5)
            for i in draw.sample(range(60), 60):
                long = i % 3 == 0
                engine.add(120 if long else 8, prompt=30,
                           extra_args={"client_id": "long" if long else "short"})  # fmt: skip
        if engine.scheduler.requests:
            engine.step()
        else:
            engine.now += 0.05
        service._advance()


@pytest.fixture(scope="module")
def switched(tmp_path_factory, vllm):
    """An engine after 18 blocks of 12 s of its own time."""
    state = tmp_path_factory.mktemp("switchback")
    engine = Engine().predict_with(
        fitted(), mode="switchback", state=str(state), switchback_period_s=12.0
    )
    load(engine, 225.0)
    yield engine, state
    engine.scheduler.shutdown()


@pytest.mark.slow
def test_an_engine_alternates_and_finds_that_acting_helps(switched):
    engine, state = switched
    stats = engine.stats()
    assert stats["switchback"]["running"]
    assert stats["switchback"]["pairs"] >= 6
    folder = state / "engine-0"
    effects = summary([folder], [stats["switchback"]])["effects"]
    assert effects.keys() == {"latency", "first_token", "throughput", "preemptions"}
    for name in ("latency", "first_token"):
        assert effects[name]["high"] < 0.0, effects[name]
        assert effects[name]["act"] < 0.8 * effects[name]["off"]
    assert effects["throughput"]["off"] > 0.0
    assert stats["decisions"]["act"]["admissions_reordered"] > 0
    assert stats["unpredicted"] > 0  # of the blocks in off


@pytest.mark.slow
def test_the_routes_and_metrics_show_it(switched, cli_lines):
    engine, state = switched
    engine.scheduler._service._publish()
    status, body = ask(state, "GET", "/lifetime/stats")
    assert status == 200
    found = json.loads(body)["switchback"]
    assert found["effects"]["latency"]["high"] < 0.0
    lines = cli_lines(json.loads(body))
    assert any(line.startswith("  Switchback: ") and "blocks of 12 s" in line for line in lines)
    assert any(line.startswith("    first token: off ") and "95 % -" in line for line in lines)
    pytest.importorskip("prometheus_client")
    from sagellm_lifetime.vllm.observability.metrics import exposition

    text = exposition(state, [], openmetrics=False).decode()
    assert 'switchback_running{engine="all",model_name="toy"} 1.0' in text
    assert (
        'switchback_effect{engine="all",model_name="toy",quantity="latency",value="high"} -' in text
    )


@pytest.fixture
def cli_lines():
    from sagellm_lifetime.cli.stats import block

    return block


@pytest.mark.slow
def test_another_mode_ends_it(switched):
    engine, _ = switched
    service = engine.scheduler._service
    service.set_mode("shadow")
    service._advance()
    assert engine.advisor.next_mode == "shadow"
    assert not engine.stats()["switchback"]["running"]


def test_a_damaged_file_is_named_and_hides_nothing(tmp_path):
    folder = tmp_path / "engine-0"
    folder.mkdir()

    (folder / "stats.json").write_text(json.dumps(STATS))
    (folder / FILE).write_bytes(b"{}")
    status, body = ask(tmp_path, "GET", "/lifetime/stats")
    assert status == 200
    answer = json.loads(body)
    assert answer["switchback"] is None
    assert answer["unreadable"] == ["switchback: no blocks of a switchback"]
