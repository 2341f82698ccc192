"""A GGUF file is read number by number, and laid out as Hugging Face has it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_models.errors import ModelError
from small_models.gguf import read_gguf
from small_models.llama import write_llama
from tiny_llama import HEADS, KV_HEADS, SAID, SHAPES, WIDTH, WORDS, gguf_file


@pytest.fixture
def laid_out(tmp_path):
    def write(**options):
        shares = []
        write_llama(read_gguf(gguf_file(**options)[0]), tmp_path, shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        return tmp_path

    return write


def test_what_a_file_says():
    found = read_gguf(gguf_file()[0]).said
    assert found.pop("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert found == {key: SAID[key] for key in found}


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_are_what_their_blocks_stand_for(version):
    content, values = gguf_file(version=version)
    gguf = read_gguf(content)
    assert [tensor.name for tensor in gguf.tensors] == list(values)
    for tensor in gguf.tensors:
        assert tensor.shape == values[tensor.name].shape
        np.testing.assert_allclose(gguf.values(tensor), values[tensor.name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (gguf_file(version=9)[0], "version"),
        (gguf_file(kind=12)[0], "kind 12"),
        (gguf_file()[0][:300], "damaged"),
        (b"GGUF", "damaged"),
    ],
)
def test_other_files_are_refused(content, said):
    with pytest.raises(ModelError, match=said):
        read_gguf(content)


def test_a_file_that_ends_too_early_is_refused():
    gguf = read_gguf(gguf_file()[0][:-64])
    with pytest.raises(ModelError, match=r"output_norm\.weight: .* ends before"):
        gguf.values(gguf.tensors[-1])


def test_weights_under_their_new_names(laid_out):
    values = gguf_file()[1]
    found = load_file(laid_out() / "model.safetensors")
    assert len(found) == len(SHAPES)
    for name, old in {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
        "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }.items():
        np.testing.assert_allclose(
            found[f"{name}.weight"], values[f"{old}.weight"], rtol=1e-6, atol=1e-7
        )


def neighbours_turned(x, position):
    """Rotary embedding as llama.cpp has it: values 0 and 1 are a pair, 2 and 3, …"""
    angles = position * 10000.0 ** (-np.arange(0, len(x), 2) / len(x))
    first, second = x[0::2], x[1::2]
    turned = np.empty_like(x)
    turned[0::2] = first * np.cos(angles) - second * np.sin(angles)
    turned[1::2] = first * np.sin(angles) + second * np.cos(angles)
    return turned


def halves_turned(x, position):
    """Rotary embedding as Hugging Face has it: the first value of each half are a pair, …"""
    half = len(x) // 2
    angles = position * 10000.0 ** (-np.arange(0, len(x), 2) / len(x))
    return np.concatenate(
        [
            x[:half] * np.cos(angles) - x[half:] * np.sin(angles),
            x[:half] * np.sin(angles) + x[half:] * np.cos(angles),
        ]
    )


def test_attention_scores_are_the_same_in_both_orders(laid_out):
    old = gguf_file()[1]
    new = load_file(laid_out() / "model.safetensors")
    state = np.random.default_rng(1).standard_normal(WIDTH)
    size = WIDTH // HEADS

    def score(query, key, turned):
        q = (query @ state).reshape(HEADS, size)
        k = (key @ state).reshape(KV_HEADS, size)
        return [turned(head, 7) @ turned(k[0], 3) for head in q]

    layer = "model.layers.0.self_attn"
    theirs = (old["blk.0.attn_q.weight"], old["blk.0.attn_k.weight"])
    ours = (new[f"{layer}.q_proj.weight"], new[f"{layer}.k_proj.weight"])
    expected = score(*theirs, neighbours_turned)
    np.testing.assert_allclose(score(*ours, halves_turned), expected, rtol=1e-5)
    assert not np.allclose(score(*theirs, halves_turned), expected, rtol=1e-2)


def test_the_configuration(laid_out):
    folder = laid_out()
    config = json.loads((folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"]
    assert (config["vocab_size"], config["hidden_size"]) == (len(WORDS), WIDTH)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["eos_token"] == "<|end|>"
    assert tokenizer["chat_template"] == SAID["tokenizer.chat_template"]


def test_an_own_output_layer_is_not_tied(laid_out):
    folder = laid_out(shapes={**SHAPES, "output": SHAPES["token_embd"]})
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


def test_the_tokenizer_merges_and_keeps_control_tokens_whole(laid_out):
    tokenizers = pytest.importorskip("tokenizers", reason="comes with vLLM")
    tokenizer = tokenizers.Tokenizer.from_file(str(laid_out() / "tokenizer.json"))
    found = tokenizer.encode("<|start|>ab abc<|end|>")
    assert found.tokens == ["<|start|>", "ab", "Ġab", "c", "<|end|>"]
    assert tokenizer.decode(found.ids) == "ab abc"
    assert tokenizer.decode(found.ids, skip_special_tokens=False) == "<|start|>ab abc<|end|>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "gemma"}, "architecture 'gemma'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer of kind 'llama'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "'qwen2'"),
    ],
)
def test_what_is_not_converted_is_refused(tmp_path, change, said):
    gguf = read_gguf(gguf_file(said=SAID | change)[0])
    with pytest.raises(ModelError, match=said):
        write_llama(gguf, tmp_path, lambda share: None)


def test_tensors_of_no_llama_are_refused(tmp_path):
    gguf = read_gguf(gguf_file(shapes={"blk.0.ssm_in": SHAPES["output_norm"]})[0])
    with pytest.raises(ModelError, match=r"blk\.0\.ssm_in\.weight"):
        write_llama(gguf, tmp_path, lambda share: None)
