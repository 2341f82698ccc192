"""The arms of the comparison: what a server is started with, and what the replay has for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.policies import POLICIES, ReplayPolicy

ARMS: Mapping[str, str] = {
    "fcfs": "vLLM's own scheduler, no prediction",
    "fcfs-watermark": "the same, watermark tuned",
    "shadow": "ours, predicting, not acting",
    "lifetime": "ours, acting",
    "lifetime-hidden": "ours, acting, the model's hidden state watched",
    "lifetime-oracle": "ours, acting, lengths known",
}
REPLAYED = ("fcfs", "fcfs-watermark", "lifetime", "lifetime-oracle")
"""Shadow is the first of them: nothing to replay. A replay with hidden states is
`hidden_replay.py`."""


@dataclass(frozen=True)
class Setting:
    """The engine of all arms."""

    blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    def options(self, served: str, extra: tuple[str, ...] = ()) -> list[str]:
        """vLLM's, on the command line."""
        said = {
            "--block-size": self.block_size,
            "--num-gpu-blocks-override": self.blocks,
            "--max-num-seqs": self.max_num_seqs,
            "--max-num-batched-tokens": self.max_num_batched_tokens,
            "--max-model-len": self.max_model_len,
            "--dtype": "float32",
            "--served-model-name": served,
            # In the engine core itself: a worker beside it is waited for by spinning, on a core.
            "--distributed-executor-backend": "uni",
            "--logits-processors": "live.end_at:EndAt",
        }
        flat = [str(each) for pair in said.items() for each in pair]
        flags = ["--enforce-eager", "--no-async-scheduling", "--disable-uvicorn-access-log"]
        return [*flat, *flags, *extra]

    def replayed(self) -> EngineSettings:
        """The same for the replay."""
        return EngineSettings(
            blocks=self.blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            prefix_caching=True,
        )


def ours(arm: str, checkpoint: Path, state: Path) -> list[str]:
    """The options of ``engine start`` itself."""
    if arm.startswith("fcfs"):
        return []
    mode = "shadow" if arm == "shadow" else "act"
    return [
        "--enable-lifetime-prediction",
        "--enable-online-learning",
        *("--predictor-checkpoint", str(checkpoint)),
        *("--lifetime-mode", mode),
        *("--state", str(state)),
        *(["--watch-hidden"] if arm == "lifetime-hidden" else []),
    ]


def theirs(arm: str, log: Path, watermark: float) -> tuple[str, ...]:
    """What goes to vLLM beyond the setting."""
    said: dict[str, Any] = {"log": str(log)}
    if arm == "lifetime-oracle":
        said["oracle"] = True
    found = ("--additional-config", json.dumps({"load": said}))
    if arm == "fcfs-watermark":
        found += ("--watermark", f"{watermark:g}")
    return found


def policies(predictor: Any, watermark: float) -> dict[str, ReplayPolicy]:
    """The replay's policies of the arms."""
    from sagellm_lifetime.replay.planned import planned_policies

    tuned = replace(POLICIES["fcfs"], name="fcfs-watermark", overrides={"watermark": watermark})
    known = {**POLICIES, **planned_policies(predictor), "fcfs-watermark": tuned}
    return {name: known[name] for name in REPLAYED}
