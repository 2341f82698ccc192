"""Command ``export``: a checkpoint as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import Checkpoint, Json
from sagellm_lifetime.cli.output import say, write_json
from sagellm_lifetime.cli.paths import check_file, check_json, find_checkpoint
from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError
from sagellm_lifetime.core.extras import require

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.checkpoint_file import Checkpoint as Contents

SUFFIXES = (".pt", ".safetensors", ".onnx")
_HEADER = 4096
"""Bytes at the beginning of an ONNX file, which name its producer."""
NOTE = (
    "The network alone: x is (batch, steps, features) with the embeddings filled in, lengths the "
    "steps of each sequence; out come corrections of log-hazards. Embeddings, residual-life table "
    "and calibration are not in it: load the .safetensors or .pt export for predictions."
)


def export(
    *,
    output_path: Annotated[
        Path,
        typer.Option(
            "--output-path",
            metavar="FILE",
            help="model.pt, model.safetensors (whole predictors) or model.onnx (a network alone).",
        ),
    ],
    checkpoint: Checkpoint = None,
    json: Json = None,
) -> None:
    """Write a trained predictor as one file."""
    from sagellm_lifetime.predictor.checkpoint_file import export_checkpoint, read_checkpoint

    if output_path.suffix not in SUFFIXES:
        raise CommandError(f"{output_path}: export writes {', '.join(SUFFIXES)}")
    check_file(output_path)
    _refuse_foreign_file(output_path)
    check_json(json, output_path, checkpoint)
    source = find_checkpoint(checkpoint)
    contents = read_checkpoint(source)
    if output_path.suffix == ".onnx":
        _export_network(source, contents, output_path)
    else:
        export_checkpoint(contents, output_path)
    size = output_path.stat().st_size
    if json is not None:
        result: dict[str, Any] = {"predictor": contents.predictor, "checkpoint": str(source)}
        write_json({**result, "file": str(output_path), "bytes": size}, json)
    if json != "-":
        say(f"Exported {contents.predictor} of {source} to {output_path} ({size / 1e6:.1f} MB)")


def _refuse_foreign_file(path: Path) -> None:
    """Raise :class:`CommandError` where a file stands that no export of ours has written.

    ``model.safetensors`` is also the usual name of a language model's weights.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        is_ours = path.suffix == ".onnx" and b"sagellm-lifetime" in file.read(_HEADER)
    if path.suffix != ".onnx":
        from sagellm_lifetime.predictor.checkpoint_file import read_checkpoint

        try:
            read_checkpoint(path)
            is_ours = True
        except (CheckpointError, MissingExtraError):
            is_ours = False
    if not is_ours:
        raise CommandError(
            f"{path}: is there already, and no export of this version: choose another name"
        )


def _export_network(source: Path, contents: Contents, target: Path) -> None:
    from sagellm_lifetime.networks.model import NetworkModel
    from sagellm_lifetime.predictor.checkpoint import load_predictor
    from sagellm_lifetime.predictor.checkpoint_file import write_atomically

    predictor = load_predictor(source)
    network = predictor.model
    if not isinstance(network, NetworkModel):
        raise CheckpointError(
            f"{source}: {contents.predictor} has no network; export .safetensors or .pt"
        )
    if network.runner is None:
        decision = str(predictor.summary.get("network", ""))
        lacks = decision if decision.startswith("no ") else "no trained network"
        raise CheckpointError(
            f"{source}: this {contents.predictor} has {lacks}; export .safetensors or .pt, or train"
        )
    onnx = _onnx()
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(network.runner.model()))
    model.producer_name = "sagellm-lifetime"
    model.doc_string = NOTE
    metadata = {"predictor": contents.predictor, "manifest": _manifest(contents)}
    onnx.helper.set_model_props(model, metadata)
    write_atomically(target, model.SerializeToString())


def _onnx() -> Any:
    """Return the package ``onnx``. Raises :class:`MissingExtraError` if it is not installed."""
    require("onnx", "an .onnx file", "train")
    import onnx

    return onnx


def _manifest(contents: Contents) -> str:
    import json

    manifest = contents.manifest("")
    return json.dumps({key: manifest[key] for key in ("format", "options", "features")})
