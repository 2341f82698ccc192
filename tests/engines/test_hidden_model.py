"""Hidden states of a tiny model in vLLM beside those of transformers, in every way to run it.

One engine for each way that needs one of its own. All answers are sampled, and compared with what
transformers computes for the same tokens.
"""

import json
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
from plain_server import HIDE
from tiny_model import CONFIG, ENVIRONMENT, make_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # vLLM's own warnings

LAYERS, LAYER, RANK = 4, 3, 4
PROMPTS = [
    list(range(1, 6)),
    list(range(7, 80)),  # longer than a chunk of the prefill
    list(range(3, 43)),
    list(range(7, 80)),  # in the prefix cache, but for its last block
    list(range(100, 164)),  # two whole blocks
    list(range(100, 164)),  # both in the prefix cache
]
ADAPTED = [1, 2]
"""Prompts that are answered once more, by a LoRA adapter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = make_model(tmp_path_factory.mktemp("hidden") / "tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**CONFIG, "num_hidden_layers": LAYERS})
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """A LoRA adapter of random weights that changes the output projections of attention."""
    import torch
    from safetensors.torch import save_file

    place = tmp_path_factory.mktemp("adapter")
    tensors = {}
    width = CONFIG["hidden_size"]
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, width)
        tensors[f"{name}.lora_B.weight"] = torch.randn(width, RANK)
    save_file(tensors, place / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["o_proj"],
        "bias": "none",
        "base_model_name_or_path": str(folder),
    }
    (place / "adapter_config.json").write_text(json.dumps(settings))
    return place


@dataclass
class Served:
    """What an engine has answered and reported."""

    kept: dict = field(default_factory=dict)
    """Record's columns by request."""
    answers: list = field(default_factory=list)
    """Adapter or "", prompt, tokens, id of each answer."""
    preempted: list = field(default_factory=list)
    states: list = field(default_factory=list)
    """Of the circuit breaker, after the answers and after an injected fault."""
    drafts: int = 0
    source: str = ""


def serve(folder, prompts, *, adapter=None, inject=False, samples=1, **options):
    """Answer prompts in an engine whose core is in this process."""
    served = Served()
    (folder.parent / "sitecustomize.py").write_text(HIDE)  # for workers of their own
    path = os.pathsep.join(filter(None, (str(folder.parent), os.environ.get("PYTHONPATH"))))
    environment = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": path}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        from sagellm_lifetime.vllm import hidden_watch
        from sagellm_lifetime.vllm.launch.server import WORKER
        from sagellm_lifetime.vllm.settings import KEY, LiveSettings

        settings = LiveSettings(hidden=True, floor_s=1.0)
        given = {
            "additional_config": {KEY: settings.json()},
            "block_size": 32,
            "disable_log_stats": True,
            "distributed_executor_backend": "uni",
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_batched_tokens": 48,
            "max_num_seqs": 8,
            "num_gpu_blocks_override": 64,
            "scheduler_cls": "sagellm_lifetime.vllm.live.scheduler",
            "worker_cls": WORKER,
        }
        llm = LLM(str(folder), **{**given, **options})
        try:
            scheduler = llm.llm_engine.engine_core.engine_core.scheduler
            watch(scheduler, served, patch)
            params = SamplingParams(max_tokens=70, ignore_eos=True, temperature=1.0, n=samples)
            requests = [(prompt, None) for prompt in prompts]
            if adapter is not None:
                lora = LoRARequest("mine", 1, str(adapter))
                requests += [(prompts[i], lora) for i in ADAPTED]
            outputs = llm.generate(
                [{"prompt_token_ids": prompt} for prompt, _ in requests],
                params,
                lora_request=[lora for _, lora in requests] if adapter is not None else None,
                use_tqdm=False,
            )
            for (prompt, lora), output in zip(requests, outputs, strict=True):
                for sample in output.outputs:
                    served.answers.append((lora, prompt, sample, output.request_id))
            served.states.append(scheduler.advisor.breaker.state)
            if inject:
                patch.setattr(hidden_watch, "reduced", lambda _state: 1 / 0)
                after = llm.generate(
                    {"prompt_token_ids": PROMPTS[0]},
                    SamplingParams(max_tokens=5, ignore_eos=True),
                    use_tqdm=False,
                )
                assert len(after[0].outputs[0].token_ids) == 5
                served.states.append(scheduler.advisor.breaker.state)
        finally:
            llm.llm_engine.engine_core.shutdown()
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    return served


def watch(scheduler, served, patch):
    """Keep the readings of requests that end, and count preemptions and drafts."""
    signals = scheduler.request_events.signals
    served.source = signals.source
    pop, seen, update = signals.pop, signals.seen, scheduler.update_from_output

    def popped(name, *, content):
        if (readings := seen(name)) and name not in served.kept:
            served.kept[name] = readings["hidden_state"]
        return pop(name, content=content)

    def updated(step, output):
        served.drafts += sum(map(len, step.scheduled_spec_decode_tokens.values()))
        return update(step, output)

    preempt = scheduler._preempt_request

    def preempted(request, *args, **rest):
        served.preempted.append(request.request_id)
        return preempt(request, *args, **rest)

    patch.setattr(signals, "pop", popped)
    patch.setattr(scheduler, "update_from_output", updated)
    patch.setattr(scheduler, "_preempt_request", preempted)


@pytest.fixture(scope="module")
def truth(folder, adapter):
    """Return a function of tokens: states after a layer, shape ``(tokens, width)``."""
    import torch
    import transformers
    from safetensors.torch import load_file

    plain, adapted = (
        transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2)
    )
    tensors = load_file(adapter / "adapter_model.safetensors")
    for i, layer in enumerate(adapted.model.layers):
        name = f"base_model.model.model.layers.{i}.self_attn.o_proj"
        a, b = (tensors[f"{name}.lora_{part}.weight"] for part in "AB")
        layer.self_attn.o_proj.weight.data += b @ a

    def states(tokens, lora):
        with torch.inference_mode():
            model = plain if lora is None else adapted
            found = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        return found[LAYER][0].numpy()

    return states


def compare(served, truth):
    """Compare all readings with the states of the same tokens; return how many there were."""
    count, worst = 0, {}
    for lora, prompt, sample, name in served.answers:
        keys = [key for key in served.kept if key_fits(key, name, sample.index)]
        assert len(keys) == 1, (name, sorted(served.kept))
        readings = served.kept[keys[0]]
        states = truth([*prompt, *sample.token_ids], lora)
        place = len(prompt) - 1
        wanted = {
            0: states[place],
            32: states[place + 16 : place + 32].mean(axis=0),
            64: states[place + 48 : place + 64].mean(axis=0),
        }
        assert set(readings) == set(wanted)
        for age, expected in wanted.items():
            worst[keys[0], age] = float(np.abs(readings[age] - expected).max())
            count += 1
    assert {key: off for key, off in worst.items() if off > 5e-4} == {}
    return count


def key_fits(key, name, sample):
    """Return True for vLLM's internal id of a sample, which has a random ending."""
    parent = key.partition("_")[2] if "_" in key else key
    return parent.rpartition("-")[0] == name and (
        "_" not in key or key.partition("_")[0] == str(sample)
    )


def test_chunks_prefix_cache_preemption_samples_and_adapters(folder, adapter, truth, vllm):
    served = serve(
        folder,
        PROMPTS,
        adapter=adapter,
        inject=True,
        samples=2,
        enable_lora=True,
        max_loras=2,  # vLLM's CPU code adds the last slot's adapter to requests without any
        max_lora_rank=8,
        num_gpu_blocks_override=14,
    )
    assert served.preempted, "the memory was to run out"
    assert compare(served, truth) == 3 * 2 * (len(PROMPTS) + len(ADAPTED))
    # What fails while it reads is a fault of the circuit breaker, and the answer is complete.
    assert served.states[0] == "closed"
    assert served.states[1] != "closed"


def test_compiled_and_with_drafts(folder, truth, vllm):
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    drafts["prompt_lookup_min"] = 1
    served = serve(folder, PROMPTS[:4], enforce_eager=False, speculative_config=drafts)
    assert served.drafts > 0
    assert compare(served, truth) == 3 * 4
    assert served.states == ["closed"]


# In eager mode vLLM 0.32 runs no pipeline on a CPU: what its warm-up would make is missing there.
@pytest.mark.parametrize(("kind", "is_eager"), [("tensor", True), ("pipeline", False)])
def test_two_ranks(folder, truth, vllm, kind, is_eager):
    served = serve(
        folder,
        PROMPTS[:4],
        distributed_executor_backend="mp",
        enforce_eager=is_eager,
        **{f"{kind}_parallel_size": 2},
    )
    assert compare(served, truth) == 3 * 4
    assert served.states == ["closed"]
    assert f"layer {LAYER} " in served.source
