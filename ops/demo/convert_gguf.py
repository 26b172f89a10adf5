"""How a small Llama in GGUF becomes what vLLM reads on a CPU: config, tokenizer and bfloat16 safetensors.

Run as `python ops/demo/convert_gguf.py FILE DIRECTORY`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3
"""GGUF's token type for tokens that steer the model and are not text."""

BLOCK_NAMES = {
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
TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def convert(gguf_file: Path, directory: Path) -> None:
    """Write config, tokenizer and bfloat16 weights as transformers names them."""
    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    write_json(directory / "config.json", config(fields))
    write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write_tokenizer(fields, directory)
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    write_weights(reader.tensors, heads, directory / "model.safetensors")


def config(fields: dict[str, Any]) -> dict[str, Any]:
    """What transformers has to know of the model's shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 8),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """SmolLM's byte-level BPE: every digit is a token of its own."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    controls = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"],
        },
    )


def write_weights(tensors: list[Any], heads: dict[str, int], path: Path) -> None:
    """Dequantise every tensor to bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    end = 0
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        _, _, part = tensor.name.removesuffix(".weight").rpartition(".")
        if part in heads:
            values = rope_order(values, heads[part])
        blobs.append(bfloat16_bytes(values))
        start, end = end, end + len(blobs[-1])
        name = safetensors_name(tensor.name)
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [start, end]}
    write_safetensors(path, header, blobs)


def write_safetensors(path: Path, header: dict[str, Any], blobs: list[bytes]) -> None:
    """The file format: the header's length in 8 bytes, the header as JSON padded to 8, then the tensors."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little"))
        opened.write(text)
        opened.writelines(blobs)


def safetensors_name(gguf_name: str) -> str:
    """The name transformers gives a tensor."""
    if gguf_name in TOP_NAMES:
        return TOP_NAMES[gguf_name]
    _, block, part, _ = gguf_name.split(".")
    return f"model.layers.{block}.{BLOCK_NAMES[part]}.weight"


def rope_order(values: Any, heads: int) -> Any:
    """Undo llama.cpp's interleaving of the two halves that rotary embeddings pair."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bfloat16_bytes(values: Any) -> bytes:
    """The upper half of each float32, rounded to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded: bytes = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return rounded


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people."""
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
