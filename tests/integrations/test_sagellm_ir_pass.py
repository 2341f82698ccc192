"""The pass for ``IROptimizer``."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sagellm_help import Tells, running

from sagellm_lifetime.integrations.sagellm import Order, Polarity, RunningSequences

START = datetime(2026, 1, 1)


@pytest.fixture
def make(control_plane):
    from sagellm_control.ir.optimizer import IROptimizer

    from sagellm_lifetime.integrations.sagellm import LifetimeIRPass

    def optimizer(*arguments, **options):
        made = IROptimizer()
        made.add_pass(LifetimeIRPass(*arguments, **options))
        return made

    return optimizer


def ir_of(*rows):
    """An IR of requests: name, priority."""
    from sagellm_control.ir.builder import IRBuilder
    from sagellm_control.types import RequestMetadata, RequestPriority

    requests = [
        RequestMetadata(request_id=name, model_id="m", prompt="a b c", prompt_tokens=10,
                        max_tokens=2000, priority=RequestPriority(priority))
        for name, priority in rows
    ]  # fmt: skip
    ir = IRBuilder().build_from_batch(requests)
    for i, task in enumerate(ir.get_task_nodes()):
        task.created_at = START + timedelta(seconds=i)
    return ir


def order(ir):
    return [task.request_id for task in ir.get_task_nodes()]


def test_short_tasks_start_first_with_their_nodes(make):
    optimizer = make(running({"a": 900, "b": 30, "c": 200}))
    assert "lifetime_order" in optimizer.list_passes()
    before = ir_of(("a", 2), ("b", 2), ("c", 2))
    edges = [(edge.from_node, edge.to_node) for edge in before.edges]
    ir = optimizer.optimize(before)
    assert order(ir) == ["b", "c", "a"]
    assert [n.node_id for n in ir.nodes[:3]] == ["task-b", "prefill-b", "decode-b"]
    assert [(edge.from_node, edge.to_node) for edge in ir.edges] == edges
    decode = ir.get_node("decode-b")
    assert decode.estimated_latency_ms == pytest.approx(600.0)
    assert decode.output_token_count == 2000  # what may be generated is not the pass's business
    assert ir.get_node("task-b").metadata["lifetime_remaining_tokens"] == 30


def test_the_executor_runs_them_in_that_order(make, control_plane):
    from sagellm_control.ir.executor import DefaultIRExecutor
    from sagellm_control.manager import ControlPlaneManager

    ir = make(running({"a": 900, "b": 30})).optimize(ir_of(("a", 2), ("b", 2)))
    commands = DefaultIRExecutor(control_plane=ControlPlaneManager()).translate_to_commands(ir)
    assert [command.node_id for command in commands] == ["task-b", "task-a"]


def test_it_is_idempotent(make):
    optimizer = make(running(dict(zip("abcdef", (9, 5, 7, 1, 8, 2), strict=True))))
    ir = optimizer.optimize(ir_of(*((name, ord(name) % 2) for name in "abcdef")))
    once = ir.to_json()
    assert optimizer.optimize(ir).to_json() == once


def test_requests_of_one_id_are_not_multiplied(make):
    ir = ir_of(("a", 2), ("a", 2), ("b", 2))
    nodes = sorted(node.node_id for node in ir.nodes)
    optimizer = make(running({"a": 900, "b": 50}))
    for _ in range(2):
        optimizer.optimize(ir)
        assert sorted(node.node_id for node in ir.nodes) == nodes
        assert order(ir) == ["b", "a", "a"]


def test_priorities_are_respected(make):
    sequences = running({"a": 900, "b": 30})
    assert order(make(sequences).optimize(ir_of(("a", 0), ("b", 4)))) == ["a", "b"]
    other = make(sequences, polarity=Polarity.HIGHER_FIRST)
    assert order(other.optimize(ir_of(("a", 0), ("b", 4)))) == ["b", "a"]


def test_the_order_is_a_parameter(make):
    sequences = running({"a": 30, "b": 900})
    rows = (("a", 2), ("b", 2))
    assert order(make(sequences, order=Order.LONGEST_FIRST).optimize(ir_of(*rows))) == ["b", "a"]
    assert order(make(sequences, order=Order.ARRIVAL).optimize(ir_of(*rows))) == ["a", "b"]


def test_overtaking_is_bounded(make):
    names = [f"r{i}" for i in range(20)]
    sequences = running({"r0": 5000, **dict.fromkeys(names[1:], 10)})
    optimizer = make(sequences, most_overtaken=4)
    assert order(optimizer.optimize(ir_of(*((name, 2) for name in names)))).index("r0") == 4


def test_requests_that_nobody_announced_are_predicted_from_their_nodes(make):
    ir = make().optimize(ir_of(("x", 2), ("y", 2)))
    assert sorted(order(ir)) == ["x", "y"]
    assert ir.get_node("task-x").metadata["lifetime_remaining_tokens"] > 0


def test_without_predictions_and_without_tasks_nothing_breaks(make, control_plane):
    from sagellm_control.ir.types import SchedulerIR

    broken = make(RunningSequences(Tells({})))
    assert order(broken.optimize(ir_of(("a", 2), ("b", 2)))) == ["a", "b"]
    assert broken.optimize(SchedulerIR(ir_id="empty")).nodes == []
