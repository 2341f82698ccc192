"""A Llama of a few hundred numbers in a hand-made GGUF file, in a hand-made wheel."""

from __future__ import annotations

import hashlib
import struct
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from small_models.published import Published
from small_models.wheels import Wheel

HEADS, KV_HEADS, WIDTH, INNER = 2, 1, 64, 96
F32, Q4_1, Q8_0 = 0, 3, 8
WORDS = ["<|none|>", "<|start|>", "<|end|>", *"abcdefghij", "Ġ", "ab", "Ġab"]
MERGES = ["a b", "Ġ ab"]
SAID = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.token_type": [3, 3, 3, *[1] * 13],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}
SHAPES = {
    "token_embd": (Q8_0, (len(WORDS), WIDTH)),
    "blk.0.attn_norm": (F32, (WIDTH,)),
    "blk.0.attn_q": (Q4_1, (WIDTH, WIDTH)),
    "blk.0.attn_k": (Q4_1, (WIDTH // HEADS * KV_HEADS, WIDTH)),
    "blk.0.attn_v": (Q4_1, (WIDTH // HEADS * KV_HEADS, WIDTH)),
    "blk.0.attn_output": (Q4_1, (WIDTH, WIDTH)),
    "blk.0.ffn_norm": (F32, (WIDTH,)),
    "blk.0.ffn_gate": (Q4_1, (INNER, WIDTH)),
    "blk.0.ffn_up": (Q4_1, (INNER, WIDTH)),
    "blk.0.ffn_down": (Q8_0, (WIDTH, INNER)),
    "output_norm": (F32, (WIDTH,)),
}


def quantised(kind, count, rng):
    """Random blocks, and number by number what they stand for."""
    if kind == F32:
        values = rng.standard_normal(count).astype("<f4")
        return values.tobytes(), values
    raw, values = b"", []
    for _ in range(count // 32):
        scale, least = rng.uniform(0.01, 0.1, 2).astype("<f2")
        raw += scale.tobytes()
        if kind == Q8_0:
            levels = rng.integers(-128, 128, 32)
            raw += struct.pack("<32b", *levels)
            values += [float(scale) * int(level) for level in levels]
        else:
            levels = rng.integers(0, 16, 32)
            raw += least.tobytes()
            raw += bytes(int(levels[i]) | int(levels[i + 16]) << 4 for i in range(16))
            values += [float(scale) * int(level) + float(least) for level in levels]
    return raw, np.array(values, dtype="<f4")


def gguf_file(*, said=None, version=3, shapes=None, kind=None):
    """The bytes of a file, and its tensors by name; ``kind`` is written instead of the true one."""
    said = SAID if said is None else said
    shapes = SHAPES if shapes is None else shapes
    rng = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": (number, shape, *quantised(number, int(np.prod(shape)), rng))
        for name, (number, shape) in shapes.items()
    }
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(said))
    for key, value in said.items():
        head += text(key) + typed(value)
    body = b""
    for name, (number, shape, raw, _) in tensors.items():
        head += (
            text(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        )
        head += struct.pack("<IQ", number if kind is None else kind, len(body))
        body += raw + bytes(-len(raw) % 32)
    content = head + bytes(-len(head) % 32) + body
    return content, {name: values.reshape(shape) for name, (_, shape, _, values) in tensors.items()}


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value):
    """A value after the number of its type."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
    items = [typed(item) for item in value]
    kind = items[0][:4]
    return (
        struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)
    )


def wheel_file(folder, content):
    """A wheel that pip takes, with the file inside, and how it would be listed."""
    path = folder / "tiny_llama-0.1-py3-none-any.whl"
    info = "tiny_llama-0.1.dist-info"
    files = {
        "tiny_llama/model.gguf": content,
        f"{info}/LICENSE": b"do as you like\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-llama\nVersion: 0.1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    raw = path.read_bytes()
    wheel = Wheel("tiny-llama", "0.1", len(raw), hashlib.sha256(raw).hexdigest())
    return path, Published("Tiny", wheel, "tiny_llama/model.gguf", f"{info}/LICENSE", 100_000)
