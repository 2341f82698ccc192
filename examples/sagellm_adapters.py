"""sageLLM's manager, control plane and optimizer with our predictor: a small trace, and why.

python examples/sagellm_adapters.py
"""

import asyncio
import sys

from sagellm_lifetime import LifetimeError, PredictionRequest
from sagellm_lifetime.integrations.sagellm import Order, RunningSequences

try:  # each says in one line what is missing, and how to install it
    from sagellm_lifetime.integrations.sagellm import LifetimeIRPass, RequestLifetimePredictor
    from sagellm_lifetime.integrations.sagellm.eviction import install
    from sagellm_lifetime.integrations.sagellm.order_policy import use_order
except LifetimeError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
from sagellm_control.ir.builder import IRBuilder
from sagellm_control.ir.optimizer import IROptimizer
from sagellm_control.manager import ControlPlaneManager
from sagellm_control.types import EngineState, RequestMetadata
from sagellm_kv_cache import KVCacheManager

sequences, cache = RunningSequences(), KVCacheManager(max_tokens=3000, block_size=16)
eviction, optimizer = install(cache, sequences), IROptimizer(passes=[LifetimeIRPass(sequences)])
plane = ControlPlaneManager(scheduling_policy="lifetime_aware", enable_predictor=True,
                            predictor=RequestLifetimePredictor(sequences=sequences))  # fmt: skip
policy = use_order(plane, Order.SHORTEST_FIRST)
plane.register_engine("engine", model_id="m", host="localhost", port=8000)
plane.update_engine_state("engine", EngineState.READY)


def arrive(name: str) -> RequestMetadata:
    features = {"client_id": name.partition("-")[0], "prompt_length": 50}
    sequences.arrived(PredictionRequest(name, [], 0, 1024, features))
    asyncio.run(plane.schedule_request(name, "trace", "m", "word " * 40, max_tokens=1024))
    return RequestMetadata(name, model_id="m", prompt="word " * 40, max_tokens=1024)


for i in range(120):  # what was served before: short chats and long reports
    name, length = (f"chat-{i}", 60) if i % 2 else (f"report-{i}", 800)
    arrive(name)
    plane.complete_request(name, "engine", actual_lifetime=length / 50)
    sequences.finished(name, length, seconds=length / 50)

queue = [arrive(name) for name in ("report-a", "chat-b", "report-c", "chat-d")]
tasks = optimizer.optimize(IRBuilder().build_from_batch(queue)).get_task_nodes()
print("control plane starts:", *(request.request_id for request in policy.reorder_queue(queue)))
print("optimizer starts:", *(task.request_id for task in tasks))
for task in tasks:
    print(f"  {task.request_id}: about {task.metadata['lifetime_remaining_tokens']} tokens to go")
    cache.alloc(600, metadata={"request_id": task.request_id})
cache.alloc(400, metadata={"request_id": "chat-1"})  # kept for reuse: its sequence has ended
sequences.progressed("chat-b", 50)
for name in ("chat-e", "report-f"):
    arrive(name)
    cache.alloc(550, metadata={"request_id": name})
    for victim in eviction.last:
        print(f"{name} needs memory, {victim.request_id} goes: {victim.reason}")
