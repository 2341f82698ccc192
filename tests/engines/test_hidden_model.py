"""Hidden states of a tiny model in vLLM, in this process, beside those of transformers."""

import numpy as np
import pytest
from tiny_model import CONFIG, make_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # vLLM's own warnings

LAYERS = 3
PROMPTS = [list(range(1, 6)), list(range(7, 80)), list(range(3, 43)), list(range(7, 80))]


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
def served(vllm, folder):
    """Readings and outputs of every prompt: short prefill chunks, little memory, n = 2."""
    import os

    from sagellm_lifetime.vllm import hidden_watch
    from sagellm_lifetime.vllm.settings import KEY, LiveSettings

    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from vllm import LLM, SamplingParams

        settings = LiveSettings(hidden=True, floor_s=1.0)
        llm = LLM(
            str(folder),
            additional_config={KEY: settings.json()},
            block_size=32,
            distributed_executor_backend="uni",
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=True,
            logits_processors=[hidden_watch.HiddenWatch],
            max_model_len=256,
            max_num_batched_tokens=32,
            max_num_seqs=8,
            num_gpu_blocks_override=14,
            scheduler_cls="sagellm_lifetime.vllm.live.scheduler",
        )
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        kept, preempted = {}, []
        pop = hidden_watch.pop
        patch.setattr(hidden_watch, "pop", lambda key: kept.setdefault(key, pop(key)))
        preempt = scheduler._preempt_request
        patch.setattr(
            scheduler,
            "_preempt_request",
            lambda request, *args, **rest: (
                preempted.append(request.request_id),
                preempt(request, *args, **rest),
            )[1],
        )
        params = SamplingParams(max_tokens=100, ignore_eos=True, temperature=1.0, n=2)
        outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
        advisor = scheduler.advisor
        state = advisor.breaker.state
        llm.llm_engine.engine_core.shutdown()
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    return kept, outputs, preempted, state


@pytest.fixture(scope="module")
def truth(folder):
    """Return a function of tokens: states after two of three layers, shape ``(tokens, width)``."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def states(tokens):
        with torch.inference_mode():
            found = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        return found[2][0].numpy()

    return states


def test_readings_are_the_states_that_transformers_computes(served, truth):
    kept, outputs, preempted, state = served
    assert state == "closed"
    assert preempted, "the memory was to run out"
    assert len(kept) == 2 * len(PROMPTS)
    worst = {}
    for i, output in enumerate(outputs):
        for sample in output.outputs:
            key = next(
                name
                for name in kept
                if name.startswith(f"{sample.index}_") and f"_{i}-" in f"{name}-"
            )
            readings, prompt = kept[key], PROMPTS[i]
            states = truth([*prompt, *sample.token_ids])
            place = len(prompt) - 1
            assert set(readings) == {0, 32, 64}
            wanted = [
                states[place],
                states[place + 16 : place + 32].mean(axis=0),
                states[place + 48 : place + 64].mean(axis=0),
            ]
            for age, expected in zip((0, 32, 64), wanted, strict=True):
                off = float(np.abs(readings[age] - expected).max())
                worst[key, age] = off
    assert len(worst) == 6 * len(PROMPTS)
    assert {name: off for name, off in worst.items() if off > 2e-4} == {}
    assert not np.allclose(kept[next(iter(kept))][0], 0.0)
