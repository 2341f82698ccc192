"""Checkpoints with damage, and checkpoints that agree with their hashes and lie."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save

from fuzzing import need, refused
from fuzzing.values import as_json, damaged
from sagellm_lifetime import PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.predictor.checkpoint_file import Checkpoint, read_checkpoint

KINDS = ("survival", "orca", "linear", "baseline")
FILES = ("model.safetensors", "manifest.json")
FEATURES = {"client_id": "c1", "model": "m", "prompt_length": 50, "session_id": "s"}


class Shared:
    """Sound checkpoints, and a place for damaged ones."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "damaged"
        self.sound = []
        for kind in KINDS:
            predictor = create_predictor(kind, seed=0)
            for i in range(80):
                features = FEATURES | {"client_id": f"c{i % 3}", "prompt_length": 30 + i}
                predictor.predict(PredictionRequest(i, [], 0, 4096, features))
                predictor.update(i, 20 + i, 1.0)
            predictor.save(folder / kind)
            self.sound.append(folder / kind)


def setup(folder: Path) -> Shared:
    """Return checkpoints of all predictors without a network."""
    return Shared(folder)


def _lie(rng: Random, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with one array, option or count that cannot be."""
    arrays = dict(checkpoint.arrays)
    name = rng.choice(list(arrays))
    array = np.array(arrays[name])
    match rng.randrange(6):
        case 0:
            value = rng.choice([math.nan, math.inf, -1.0, 1e300, -(2**40)])
            if array.dtype.kind == "f" or math.isfinite(value):
                with np.errstate(all="ignore"):
                    flat = array.reshape(-1)
                    some = slice(None) if rng.random() < 0.5 else slice(0, 1)
                    flat[some] = np.float64(value).astype(array.dtype)
                    array = flat.reshape(array.shape)
        case 1:
            array = array[:0] if array.ndim else array
        case 2:
            array = np.concatenate([array, array]) if array.ndim else array[None]
        case 3:
            array = array.astype(rng.choice([np.float32, np.int64, np.uint8, np.float64]))
        case 4:
            array = array.reshape(-1)[::-1].copy().reshape(array.shape)
        case _:
            arrays.pop(name)
            return Checkpoint(checkpoint.predictor, checkpoint.options, arrays)
    arrays[name] = array
    options: dict[str, Any] = dict(checkpoint.options)
    if rng.random() < 0.2:
        options[rng.choice([*options, "oops"])] = as_json(rng)
    return Checkpoint(checkpoint.predictor, options, arrays)


def attempt(shared: Shared, rng: Random) -> str:
    """Load a checkpoint that is not as it was saved; what loads must serve."""
    source, place = rng.choice(shared.sound), shared.place
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    if rng.random() < 0.4:
        file = place / rng.choice(FILES)
        file.write_bytes(damaged(rng, file.read_bytes()))
    else:
        lying = _lie(rng, read_checkpoint(source))
        data = save(lying.arrays)
        (place / FILES[0]).write_bytes(data)
        manifest = lying.manifest(hashlib.sha256(data).hexdigest())
        (place / FILES[1]).write_text(json.dumps(manifest), encoding="utf-8")
    try:
        predictor = load_predictor(place)
    except LifetimeError as error:
        return refused(error)
    for i in range(3):
        result = predictor.predict(PredictionRequest(i, [], 16 * i, 4096, FEATURES))
        need(result.estimated_remaining_tokens >= 1, f"{result}")
        need(0.0 <= result.confidence <= 1.0, f"confidence {result.confidence}")
        need(math.isfinite(result.estimated_time), f"{result.estimated_time} seconds")
        predictor.update(i, 100, 2.0)
    json.dumps(predictor.get_metrics(), allow_nan=False)
    return "taken"
