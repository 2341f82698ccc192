"""A Llama in a GGUF file as the folder that Hugging Face's tools, and vLLM, load.

Names of tensors and the order of the rows of queries and keys differ between the two (llama.cpp
turns neighbouring pairs, Hugging Face the two halves of a head), and so does the form in which the
tokenizer is written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from small_models.errors import ModelError
from small_models.gguf import Gguf, Tensor

_OUTSIDE: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL: Final = 3
"""Kind of a token that is no text."""
_SPLITS: Final = {"gpt-2": [], "smollm": [{"type": "Digits", "individual_digits": True}]}
"""What comes before the byte-level split, by the name llama.cpp gives to the way of splitting."""


def write_llama(gguf: Gguf, folder: Path, step: Callable[[float], None]) -> None:
    """Write config, tokenizer and weights (float32) into an existing, empty folder.

    Args:
        gguf: the model.
        folder: where the files go.
        step: told which share of the weights is written.

    Raises:
        ModelError: it is no Llama, or its tokenizer is of a kind that is not written here.
    """
    architecture = gguf.said.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"a model of architecture {architecture!r}: only llama is converted")
    for name, content in {
        "config.json": _config(gguf),
        "generation_config.json": _ids(gguf),
        "tokenizer.json": _tokenizer(gguf),
        "tokenizer_config.json": _tokenizer_config(gguf),
    }.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as stream:
        _write_weights(gguf, stream, step)


def _ids(gguf: Gguf) -> dict[str, Any]:
    keys = {"bos": "bos", "eos": "eos", "padding": "pad"}
    found = {ours: gguf.said.get(f"tokenizer.ggml.{key}_token_id") for key, ours in keys.items()}
    return {f"{name}_token_id": value for name, value in found.items() if value is not None}


def _config(gguf: Gguf) -> dict[str, Any]:
    said = {
        key.removeprefix("llama."): value
        for key, value in gguf.said.items()
        if key.startswith("llama.")
    }
    heads, width = said["attention.head_count"], said["embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(gguf.said["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": said["feed_forward_length"],
        "num_hidden_layers": said["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": said["attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": said["context_length"],
        "rope_theta": said["rope.freq_base"],
        "rms_norm_eps": float(str(np.float32(said["attention.layer_norm_rms_epsilon"]))),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in gguf.tensors),
        "torch_dtype": "float32",
        **_ids(gguf),
    }


def _tokenizer(gguf: Gguf) -> dict[str, Any]:
    said = gguf.said
    kind, split = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS:
        raise ModelError(
            f"a tokenizer of kind {kind!r}, {split!r}: only byte-level BPE is converted"
        )
    tokens = said["tokenizer.ggml.tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags, "special": True}
            for i, token_kind in enumerate(said["tokenizer.ggml.token_type"])
            if token_kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*_SPLITS[split], {**byte_level, "use_regex": True}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [pair.split(" ", 1) for pair in said["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(gguf: Gguf) -> dict[str, Any]:
    tokens = gguf.said["tokenizer.ggml.tokens"]
    names = {name.removesuffix("_id"): tokens[i] for name, i in _ids(gguf).items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": gguf.said["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **names,
        "chat_template": gguf.said["tokenizer.chat_template"],
    }


def _write_weights(gguf: Gguf, stream: BinaryIO, step: Callable[[float], None]) -> None:
    """The safetensors form, tensor after tensor, so that only one is in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for tensor in gguf.tensors:
        end = total + 4 * prod(tensor.shape)
        place = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [total, end]}
        header[_name(tensor.name)] = place
        total = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    written = 0
    for tensor in gguf.tensors:
        written += stream.write(_turned(gguf, tensor).tobytes())
        step(written / total)


def _name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _INSIDE:
            return f"model.layers.{layer}.{_INSIDE[part]}.weight"
    raise ModelError(f"{name}: no tensor of a Llama")


def _turned(gguf: Gguf, tensor: Tensor) -> NDArray[np.float32]:
    """A tensor's values, the rows of queries and keys in Hugging Face's order."""
    values = gguf.values(tensor)
    for part, key in {".attn_q.": "head_count", ".attn_k.": "head_count_kv"}.items():
        if part in tensor.name:
            pairs = values.reshape(gguf.said[f"llama.attention.{key}"], -1, 2, values.shape[1])
            return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
    return values
