"""Every family that transformers and MLX-LM both know: does chuk compute what transformers does?

    python benchmarks/families.py names > names              (chuk's environment)
    python benchmarks/families.py make FOLDER $(cat names)   (one with transformers 5.23 and torch)
    python benchmarks/families.py check FOLDER [NAME …]      (chuk's)

`names` are the families that MLX-LM has. `make` saves a tiny random model of each that transformers
has too, as transformers saves it, with the logits of 20 tokens. `check` loads them with chuk and
compares the logits of one pass and of decoding over a cache; without names it writes the table
`families.md` beside this file. A family is right (1e-4, relative to the largest logit where that is
above 1), refused by name, or wrong: with one that is wrong the exit code is 1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "fixtures" / "architectures"), str(HERE.parent)]
from weights import weight  # noqa: E402

TOKENS, SEED, NEAR, LARGEST, LONGEST = 20, 0, 1e-4, 3_000_000, 312
SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "sliding_window": 4,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What a config has of these is set to them."""
EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
OWN: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"] * 2,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma4_text": {
        "head_dim": 8,
        "vocab_size_per_layer_input": 48,
        "hidden_size_per_layer_input": 8,
        "num_hidden_layers": 6,
    },
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "num_experts_per_token": 2,
    },
    "longcat_flash": {
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "head_dim": 8,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "falcon_h1": {
        "head_dim": 8,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_ssm": 32,
        "mamba_d_state": 8,
    },
    "llama4_text": {
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 8,
    },
    "glm_moe_dsa": {
        "first_k_dense_replace": 1,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "index_topk": 64,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "bailing_hybrid": {
        "num_expert_group": 1,
        "num_experts_per_token": 2,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_group_size": 2,
        "first_k_dense_replace": 1,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 4},
}
"""What a family needs besides."""
ANOTHER = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "llama4": "llama4_text"}
"""Configs of several modalities whose text model stands in the table by itself."""


def names() -> list[str]:
    """The model types that MLX-LM has a file for."""
    import mlx_lm.models
    from mlx_lm.utils import MODEL_REMAPPING

    folder = Path(mlx_lm.models.__path__[0])
    return sorted({*(path.stem for path in folder.glob("*.py")), *MODEL_REMAPPING} - set(ANOTHER))


def known(kinds: list[str]) -> list[str]:
    """Those of which transformers has a language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [kind for kind in kinds if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]


def tiny(kind: str) -> Any:
    """A small config of a family."""
    from transformers import AutoConfig

    usual = AutoConfig.for_model(kind)
    inner = usual.get_text_config()
    sizes = {name: value for name, value in SIZES.items() if name in vars(inner)}
    if "qk_rope_head_dim" in sizes:  # the width of a head follows from its parts
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    sizes |= {name: 4 for name in EXPERTS if getattr(inner, name, None)}
    sizes |= OWN.get(kind, {})
    return AutoConfig.for_model(kind, **sizes if inner is usual else {"text_config": sizes})


def make(folder: Path, kind: str) -> None:
    """Save the model and its logits."""
    import torch
    from safetensors import safe_open
    from safetensors.numpy import save_file
    from transformers import AutoModelForCausalLM

    config = tiny(kind)
    with torch.device("meta"):
        weights = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
    if weights > LARGEST:
        raise ValueError(f"{weights:,} weights: name its sizes in OWN")
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    with safe_open(path, "np") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    drawn = {key: weight(key, tuple(shape), SEED) for key, shape in shapes.items()}
    save_file(drawn, path, metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids = np.random.default_rng(SEED).integers(3, 48, TOKENS)
    with torch.no_grad():
        logits = model(torch.tensor(ids[None]), use_cache=False).logits[0].numpy()
        exact = in_double(model, ids)
    own = 0.0 if exact is None else np.abs(exact - logits).max()
    np.savez(folder / "logits.npz", ids=ids, logits=logits, own=own)


def in_double(model: Any, ids: np.ndarray) -> np.ndarray | None:
    """The logits in float64; None for a model that computes in float32 whatever it is told."""
    import torch

    for module in model.double().modules():
        for name, value in module.named_buffers(recurse=False):
            if value.is_floating_point():
                setattr(module, name, value.double())
    try:
        return model(torch.tensor(ids[None]), use_cache=False).logits[0].numpy()
    except RuntimeError:
        return None


def check(folder: Path) -> tuple[str, str]:
    """What chuk makes of a saved model: right, refused, WRONG; and the figures or the words."""
    import mlx.core as mx

    from chuk_lib.errors import ChukError
    from chuk_lib.models.hf_config import read_config
    from chuk_lib.models.honoured import ignored_window
    from chuk_lib.models.loader import open_model

    found = np.load(folder / "logits.npz")
    seen = ignored_window(read_config(folder)) or TOKENS
    ids, want = mx.array(found["ids"])[None], found["logits"]
    try:
        model: Any = open_model(folder)
    except ChukError as error:
        return "refused", str(error.message).replace(str(folder), folder.name)
    cache = model.make_cache() if hasattr(model, "make_cache") else None
    if cache is None:
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(model)
    parts = [model(ids[:, :5], cache=cache)]
    parts += [model(ids[:, at : at + 1], cache=cache) for at in range(5, TOKENS)]
    steps = np.array(mx.concatenate(parts, axis=1)[0].astype(mx.float32))
    once = np.array(model(ids)[0].astype(mx.float32))
    off = [float(np.abs(one - want)[:seen].max()) for one in (once, steps)]
    largest = float(np.abs(want).max())
    words = f"{off[0]:.0e} and {off[1]:.0e} of {largest:.1f}"
    words += f", up to {seen} tokens: chuk says so" if seen < TOKENS else ""
    # Some random models are so badly conditioned that transformers is off its own float64.
    allowed = max(NEAR * max(1.0, largest), 2 * float(found["own"]))
    if max(off) > NEAR * max(1.0, largest):
        words += f"; transformers {float(found['own']):.0e} off its float64"
    return ("right" if max(off) <= allowed else "WRONG"), words


def verdict(folder: Path) -> str:
    """The line of the table for a saved model."""
    try:
        found, words = check(folder)
    except Exception as error:
        found, words = "WRONG", f"{type(error).__name__}: {str(error).strip()[:200]}"
    line = f"| {folder.name} | {found} | {words}"
    return f"{line} |" if len(line) < LONGEST else f"{line[:LONGEST].rstrip()} … |"


def main() -> None:
    """`names`, `make` or `check`."""
    what, *rest = sys.argv[1:]
    if what == "names":
        print(*names())
        return
    folder, kinds = Path(rest[0]), rest[1:]
    if what == "make":
        for kind in known(kinds):
            try:
                make(folder / kind, kind)
            except Exception as error:
                print(f"{kind}: {type(error).__name__}: {str(error).strip()[:300]}", flush=True)
        return
    made = sorted(path.parent.name for path in folder.glob("*/logits.npz"))
    rows = []
    for kind in kinds or made:
        rows.append(verdict(folder / kind))
        print(rows[-1], flush=True)
    if not kinds:
        head = "| model_type | | one pass and over a cache, of the largest logit; or why not |"
        (HERE / "families.md").write_text("\n".join((head, "| --- | --- | --- |", *rows, "")))
    sys.exit(any("| WRONG |" in row for row in rows))


if __name__ == "__main__":
    main()
