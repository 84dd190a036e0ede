"""Model families in GGUF: names of tensors, what is stored in another form than Hugging Face's,
config and metadata.

What GGUF cannot say of a model (a sliding window of a Llama, another activation) is refused by
name, never left out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chuk_lib.errors import ModelError
from chuk_lib.models.gguf.files import GgufFile

Config = dict[str, Any]

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ATTENTION = {
    f"self_attn.{one}_proj": f"attn_{other}"
    for one, other in zip("qkvo", ("q", "k", "v", "output"), strict=True)
}
_GATED = {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_LAYER = _ATTENTION | _GATED | _NORMS
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_GEMMA3 = (
    _LAYER
    | _HEAD_NORMS
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
)
_PHI3 = _NORMS | {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_STARCODER2 = _ATTENTION | _NORMS | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
_SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


@dataclass(frozen=True)
class GgufFamily:
    """How one family lies in a file. `layer` maps names inside a block; `permuted` is whether rows
    of q and k are in the order of interleaved RoPE; `shift` is added to the weights of norms;
    `scales` are numbers of the config."""

    arch: str
    model_type: str
    name: str
    layer: Mapping[str, str]
    acts: tuple[str, ...] = ("silu",)
    permuted: bool = False
    shift: float = 0.0
    epsilon: tuple[str, str] = ("rms_norm_eps", "attention.layer_norm_rms_epsilon")
    scales: Mapping[str, str] = field(default_factory=dict)


_LLAMA = GgufFamily("llama", "llama", "LlamaForCausalLM", _LAYER, permuted=True)
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": GgufFamily("qwen2", "qwen2", "Qwen2ForCausalLM", _LAYER),
    "qwen3": GgufFamily("qwen3", "qwen3", "Qwen3ForCausalLM", _LAYER | _HEAD_NORMS),
    "gemma3_text": GgufFamily(
        "gemma3", "gemma3_text", "Gemma3ForCausalLM", _GEMMA3, ("gelu_pytorch_tanh",), shift=1.0
    ),
    "granite": GgufFamily(
        "granite", "granite", "GraniteForCausalLM", _LAYER, permuted=True, scales=_SCALES
    ),
    "phi3": GgufFamily("phi3", "phi3", "Phi3ForCausalLM", _PHI3),
    "starcoder2": GgufFamily(
        "starcoder2",
        "starcoder2",
        "Starcoder2ForCausalLM",
        _STARCODER2,
        ("gelu_pytorch_tanh",),
        epsilon=("norm_epsilon", "attention.layer_norm_epsilon"),
    ),
}
"""By `model_type`; a Mistral without a window is a Llama, in files too."""


def family_of(config: Config) -> GgufFamily:
    """The family of a model. Raises ModelError for one that chuk does not write, or what GGUF
    cannot say of it."""
    kind = config["model_type"]
    if kind not in FAMILIES:
        raise ModelError(
            f"chuk does not write GGUF files of `{kind}` models", f"it writes {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    act = config.get("hidden_activation") or config.get("hidden_act") or family.acts[0]
    window = (
        config.get("sliding_window") if config.get("use_sliding_window", kind != "qwen2") else None
    )
    if act not in family.acts:
        raise _unsayable(kind, f"the activation `{act}`")
    if kind != "gemma3_text" and window and window < config.get("max_position_embeddings", 1 << 40):
        raise _unsayable(
            kind, f"a sliding window of {window} in {config.get('max_position_embeddings')} tokens"
        )
    if float(config.get("partial_rotary_factor") or 1) != 1:
        raise _unsayable(kind, f"RoPE on a part of each head ({config['partial_rotary_factor']})")
    if kind == "gemma3_text":
        _check_gemma3(config)
    return family


def _check_gemma3(config: Config) -> None:
    head = config.get("head_dim", 256)
    if config.get("query_pre_attn_scalar", 256) != head:
        raise _unsayable(
            "gemma3_text",
            f"query_pre_attn_scalar {config.get('query_pre_attn_scalar')} (head_dim {head})",
        )
    if float(config.get("rope_local_base_freq") or 1e4) != 1e4:
        raise _unsayable("gemma3_text", f"rope_local_base_freq {config['rope_local_base_freq']}")
    if config.get("attn_logit_softcapping") or config.get("final_logit_softcapping"):
        raise _unsayable("gemma3_text", "soft caps of logits")


def _unsayable(kind: str, what: str) -> ModelError:
    return ModelError(
        f"a GGUF file of a `{kind}` model cannot say {what}", "run it with chuk or transformers"
    )


def gguf_name(name: str, family: GgufFamily) -> str:
    """A tensor's name in a GGUF file. Raises ModelError for one that the family does not have."""
    module, _, leaf = name.rpartition(".")
    if module in _TOP and leaf in ("weight", "bias"):
        return f"{_TOP[module]}.{leaf}"
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if found is None or found[2] not in family.layer:
        raise ModelError(f"`{name}` has no place in a GGUF file of a `{family.model_type}` model")
    return f"blk.{found[1]}.{family.layer[found[2]]}.{leaf}"


def hf_name(name: str, family: GgufFamily) -> str:
    """The reverse of `gguf_name`."""
    module, _, leaf = name.rpartition(".")
    for theirs, ours in _TOP.items():
        if module == ours:
            return f"{theirs}.{leaf}"
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
    inner = next(
        (theirs for theirs, ours in family.layer.items() if found and ours == found[2]), None
    )
    if found is None or inner is None:
        raise ModelError(
            f"`{name}` is a tensor that chuk does not know in a `{family.arch}` GGUF file"
        )
    return f"model.layers.{found[1]}.{inner}.{leaf}"


def reorder(
    name: str, family: GgufFamily, heads: int, kv_heads: int, back: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """What is done to a tensor of GGUF name `name` on the way into a file, or `back`: rows of q and
    k between halves (transformers) and pairs (GGUF), the 1 that norms of Gemma have added."""
    part = name.split(".")[-2]
    count = {"attn_q": heads, "attn_k": kv_heads}.get(part) if family.permuted else None
    if count is not None:
        return lambda x: _permuted(x, count, back)
    if family.shift and part.endswith("norm"):
        return lambda x: x - np.float32(family.shift) if back else x + np.float32(family.shift)
    return lambda x: x


def _permuted(x: np.ndarray, heads: int, back: bool) -> np.ndarray:
    inner = (-1, 2) if back else (2, -1)
    return np.ascontiguousarray(x.reshape(heads, *inner, *x.shape[1:]).swapaxes(1, 2)).reshape(
        x.shape
    )


def metadata_of(config: Config, family: GgufFamily) -> dict[str, Any]:
    """Metadata of the architecture. Raises ModelError for RoPE that GGUF cannot say."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or hidden // heads
    own = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(config.get("rope_theta") or 10000.0),
        family.epsilon[1]: float(
            config.get(family.epsilon[0], 1e-5 if family.arch == "starcoder2" else 1e-6)
        ),
        **{key: float(config[name]) for name, key in family.scales.items() if name in config},
        **_scaling(config),
    }
    if family.arch == "gemma3":
        own |= {"attention.sliding_window": config.get("sliding_window") or 4096}
        own |= {"attention.sliding_window_pattern": _windows(config)}
    elif family.arch == "phi3" and config.get("sliding_window"):
        own |= {"attention.sliding_window": config["sliding_window"]}
    return {f"{family.arch}.{key}": value for key, value in own.items()}


def _windows(config: Config) -> list[bool]:
    kinds, period = config.get("layer_types"), config.get("sliding_window_pattern") or 6
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    return [bool((layer + 1) % period) for layer in range(config["num_hidden_layers"])]


def _scaling(config: Config) -> dict[str, Any]:
    rope = config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    usual = {"type", "rope_type", "factor", "original_max_position_embeddings", "rope_theta"}
    if kind != "yarn" or any(
        value is not None for name, value in rope.items() if name not in usual
    ):
        raise _unsayable(config["model_type"], f"RoPE of kind `{kind}` with {sorted(rope)}")
    original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope["factor"]),
        "rope.scaling.original_context_length": int(original),
    }


def rope_factors(config: Config) -> np.ndarray | None:
    """What each frequency of Llama 3's RoPE is divided by, (head_dim/2,): a tensor of the file.
    Frequencies whose wavelength is short stay, long ones are divided by the factor, and between
    them it goes over smoothly."""
    rope = config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) != "llama3":
        return None
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, factor = (
        float(rope[name]) for name in ("low_freq_factor", "high_freq_factor", "factor")
    )
    frequencies = float(config.get("rope_theta") or 1e4) ** -(np.arange(0, head, 2) / head)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def config_of(found: GgufFile) -> tuple[Config, GgufFamily]:
    """The config of the model in a file, for transformers. Raises ModelError for architectures that
    chuk does not read, and for what it cannot put into a config."""
    arch = found.metadata.get("general.architecture")
    family = next((family for family in FAMILIES.values() if family.arch == arch), None)
    if family is None:
        raise ModelError(
            f"`{found.path}` holds a `{arch}` model", "chuk reads " + ", ".join(sorted(FAMILIES))
        )
    heads, hidden = found.needed("attention.head_count"), found.needed("embedding_length")
    if isinstance(heads, list) or isinstance(found.needed("feed_forward_length"), list):
        raise ModelError(f"`{found.path}` has layers of different sizes, which chuk does not read")
    kv_heads = found.own("attention.head_count_kv", heads)
    if not 0 < kv_heads <= heads <= hidden:
        raise ModelError(
            f"`{found.path}` is damaged: {heads} heads, {kv_heads} of them for keys, at a width of"
            f" {hidden}",
            "fetch it again",
        )
    embedding = found.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"`{found.path}` has no embeddings", "is it a part of a split file?")
    config = {
        "architectures": [family.name],
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": found.needed("feed_forward_length"),
        "num_hidden_layers": found.needed("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": found.own("attention.key_length") or hidden // heads,
        "max_position_embeddings": found.needed("context_length"),
        "rope_theta": _short(found.own("rope.freq_base", 10000.0)),
        family.epsilon[0]: _short(found.needed(family.epsilon[1])),
        ("hidden_activation" if arch == "gemma3" else "hidden_act"): family.acts[0],
        "tie_word_embeddings": "output.weight" not in found.tensors,
        **_biases(found, family),
        **{
            name: _short(found.own(key))
            for name, key in family.scales.items()
            if found.own(key) is not None
        },
    }
    return config | _rope_of(found, config) | _windows_of(found), family


def _short(value: float) -> float:
    """The shortest number that is the same in float32: 1e-06, not 9.999999974752427e-07."""
    return float(np.format_float_scientific(np.float32(value), unique=True))


def _biases(found: GgufFile, family: GgufFamily) -> Config:
    attention, mlp = "blk.0.attn_q.bias" in found.tensors, "blk.0.ffn_up.bias" in found.tensors
    if family.arch in ("qwen2", "gemma3", "phi3"):
        return {}
    return (
        {"use_bias": mlp}
        if family.arch == "starcoder2"
        else {"attention_bias": attention, "mlp_bias": mlp}
    )


def _windows_of(found: GgufFile) -> Config:
    window, arch = found.own("attention.sliding_window"), found.metadata.get("general.architecture")
    if arch == "phi3":
        return {"sliding_window": window or None}
    if arch != "gemma3":
        return {"sliding_window": None} if arch == "starcoder2" else {}
    pattern, layers = found.own("attention.sliding_window_pattern", 6), found.needed("block_count")
    slides = (
        pattern
        if isinstance(pattern, list)
        else [bool((layer + 1) % pattern) for layer in range(layers)]
    )
    return {
        "sliding_window": window,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": found.needed("attention.key_length"),
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
    }


def _rope_of(found: GgufFile, config: Config) -> Config:
    kind = found.own("rope.scaling.type", "none")
    factors = found.tensors.get("rope_freqs.weight")
    if factors is not None:
        return {"rope_scaling": _llama3_of(found, config, factors.read())}
    if kind == "linear":
        return {
            "rope_scaling": {
                "rope_type": "linear",
                "factor": _short(found.needed("rope.scaling.factor")),
            }
        }
    if kind == "yarn":
        original = found.own(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        )
        factor = _short(found.needed("rope.scaling.factor"))
        return {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
            }
        }
    if kind != "none" or any(name.startswith("rope_factors") for name in found.tensors):
        raise ModelError(
            f"`{found.path}` has RoPE of a kind that chuk does not read (`{kind}`, or long and"
            " short)"
        )
    return {}


def _llama3_of(found: GgufFile, config: Config, factors: np.ndarray) -> Config:
    """The settings that give these factors: the file has the factors only."""
    for original in (2**power for power in range(4, 18)):
        rope = {
            "rope_type": "llama3",
            "factor": _short(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        made = rope_factors(config | {"rope_scaling": rope})
        if (
            made is not None
            and made.shape == factors.shape
            and np.allclose(made, factors, rtol=1e-5)
        ):
            return rope
    raise ModelError(
        f"`{found.path}` has RoPE factors that are not Llama 3's", "take the model's folder instead"
    )
