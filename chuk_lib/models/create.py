"""Make a small model from nothing: a Llama folder with random weights, a tokenizer and a chat
template that mlx-lm, transformers and chuk load like any other; or one of any family that chuk
runs, from its config.

Weights are normal with std √(2 / (5·hidden)) (Nguyen and Salazar 2019: 0.026 at 576; the usual 0.02
leaves a model of width 64 on a plateau for thousands of steps), those that write to the residual
stream (`o_proj`, `down_proj`) scaled by 1/√(2·layers) as in GPT-2, norms 1. The same seed gives the
same bytes. The folder is written beside and renamed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.initial import GivenConfig, InitialWeights
from chuk_lib.models.presets import Preset, find_preset
from chuk_lib.models.writing import (
    check_output,
    new_folder,
    planned,
    refuse_source,
    write_tensors,
)

if TYPE_CHECKING:
    import numpy as np

DEFAULT_TRAINED_VOCABULARY = 4096
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class _TokenizerFiles:
    """What a tokenizer puts into a model folder, and the ids the model's config names."""

    files: dict[str, bytes]
    size: int
    pad_id: int | None
    eos_ids: tuple[int, ...]
    bos_id: int | None = None


def create_model(
    preset: str | None,
    output: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    tokenizer_texts: Iterable[str] | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    context_length: int | None = None,
    chat_template: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a new model of a preset's shape, or of that of a `config` (a `config.json`, its folder,
    or what is in it), to the folder `output` and return it.

    `tokenizer` is `char` (default), `bytes` or a folder to copy from; with `tokenizer_texts` a
    byte-level BPE of `vocab_size` tokens is trained on them. Without it `vocab_size` is the number
    of embedding rows, at least the tokenizer's. `chat_template`: None keeps the tokenizer's own or
    adds ChatML, `none` adds nothing, else a Jinja file. Raises ConfigError for wrong settings or a
    folder that is not empty, DataError and ModelError for unusable inputs."""
    made = plan_model(
        preset,
        output,
        config=config,
        tokenizer=tokenizer,
        tokenizer_texts=tokenizer_texts,
        vocab_size=vocab_size,
        context_length=context_length,
        chat_template=chat_template,
        seed=seed,
        overwrite=overwrite,
    )
    folder = made.folder
    with new_folder(folder, overwrite, made.disk_bytes) as partial:
        for name, content in made.files.items():
            (partial / name).write_bytes(content)
        write_tensors(partial, planned(dict(made.draw())), made.layout)
    return folder


@dataclass(frozen=True)
class NewModel:
    """A model that is about to be written: all files but the weights, which `draw` makes; `rows` of
    embeddings. `name` is the preset's, or the config's model_type."""

    folder: Path
    name: str
    files: dict[str, bytes]
    vocabulary: int
    rows: int
    context_length: int
    parameters: int
    draw: Callable[[], Iterable[tuple[str, np.ndarray]]]
    layout: str = "pt"

    @property
    def disk_bytes(self) -> int:
        """Size of the folder, but for the header of the weights file."""
        return 4 * self.parameters + sum(map(len, self.files.values()))


def plan_model(
    preset: str | None,
    output: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    tokenizer_texts: Iterable[str] | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    context_length: int | None = None,
    chat_template: str | Path | None = None,
    overwrite: bool = False,
) -> NewModel:
    """What `create_model` would write with these settings; raises what it would raise and writes
    nothing."""
    shape = _shape(preset, config)
    folder = Path(output)
    _check_settings(seed, context_length)
    check_output(folder, overwrite)
    if tokenizer is not None:
        refuse_source(folder, Path(tokenizer))
    if isinstance(config, str | Path):
        refuse_source(folder, Path(config))
    context = context_length or shape.context_length
    parts = _tokenizer_files(tokenizer, tokenizer_texts, vocab_size or shape.vocab_size, context)
    rows = _embedding_rows(shape, parts.size, vocab_size if tokenizer_texts is None else None)
    files = parts.files | _template_files(parts.files, chat_template)
    if isinstance(shape, Preset):
        files |= _config_files(shape, parts, rows, context)
        weights: tuple[Any, ...] = (shape.parameters(rows), lambda: _weights(shape, rows, seed))
    else:
        whole = shape.with_sizes(rows, context) | _token_ids(parts)
        drawn = InitialWeights(whole, seed)
        files |= {"config.json": _json(whole), "generation_config.json": _json(_token_ids(parts))}
        weights = (drawn.parameters, drawn.draw, drawn.layout)
    return NewModel(folder, shape.name, files, parts.size, rows, context, *weights)


def _shape(
    preset: str | None, config: str | Path | Mapping[str, Any] | None
) -> Preset | GivenConfig:
    if (preset is None) == (config is None):
        raise ConfigError(
            "a new model is of a preset or of a config", "give one of --preset and --config"
        )
    if config is not None:
        return GivenConfig.read(config)
    found = find_preset(str(preset))
    return found if isinstance(found, Preset) else GivenConfig.read(found.config, found.name)


def _check_settings(seed: int, context_length: int | None) -> None:
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, not {seed}")
    if context_length is not None and context_length < 2:
        raise ConfigError(f"context length must be 2 or more, not {context_length}")


def _embedding_rows(shape: Preset | GivenConfig, tokens: int, wanted: int | None) -> int:
    if wanted is not None and wanted < tokens:
        raise ConfigError(
            f"--vocab-size {wanted} is below the tokenizer's {tokens} tokens",
            f"use {tokens} or more",
        )
    if isinstance(shape, GivenConfig) and wanted is None and 0 < (shape.vocab_size or 0) < tokens:
        raise ConfigError(
            f"the config's vocab_size {shape.vocab_size} is below the tokenizer's {tokens} tokens",
            f"give --vocab-size {tokens}, or leave vocab_size out of the config",
        )
    return wanted or max(tokens, shape.vocab_size or 0)


def _tokenizer_files(
    tokenizer: str | Path | None, texts: Iterable[str] | None, vocab_size: int | None, context: int
) -> _TokenizerFiles:
    from chuk_lib.data.tokenizers import char, train

    if texts is not None:
        if tokenizer is not None:
            raise ConfigError(
                "a tokenizer is either given or trained",
                "leave out --tokenizer or --tokenizer-data",
            )
        made = train.train_bpe(texts, vocab_size or DEFAULT_TRAINED_VOCABULARY)
    elif tokenizer in (None, "char"):
        made = char.char_tokenizer()
    elif tokenizer == "bytes":
        made = char.byte_tokenizer()
    else:
        return _copied_tokenizer(Path(str(tokenizer)))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": char.TURN_END,
        "pad_token": char.PAD,
        "extra_special_tokens": [char.END_OF_TEXT, char.TURN_START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    files = {
        "tokenizer.json": made.to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(config),
    }
    ids = {token: index for index, token in enumerate(char.SPECIAL_TOKENS)}
    return _TokenizerFiles(
        files, made.get_vocab_size(), ids[char.PAD], (ids[char.TURN_END], ids[char.END_OF_TEXT])
    )


def _copied_tokenizer(folder: Path) -> _TokenizerFiles:
    """The tokenizer of another model folder. Raises ModelError when it has no `tokenizer.json` or
    no EOS token."""
    files = {
        name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()
    }
    if "tokenizer.json" not in files:
        raise ModelError(
            f"`{folder}` has no tokenizer.json",
            "give char, bytes or a model folder, or use --tokenizer-data",
        )
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_str(files["tokenizer.json"].decode())
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"`{folder}` has a tokenizer that cannot be read: {error}") from None
    ids = {
        name: made.token_to_id(_content(config.get(f"{name}_token")) or "")
        for name in ("pad", "eos", "bos")
    }
    if ids["eos"] is None:
        raise ModelError(
            f"`{folder}` names no end-of-sequence token",
            "set `eos_token` in its tokenizer_config.json",
        )
    size = max(made.get_vocab(with_added_tokens=True).values()) + 1
    return _TokenizerFiles(files, size, ids["pad"], (ids["eos"],), ids["bos"])


def _content(token: Any) -> str | None:
    """A token as tokenizer_config.json writes it: text, or an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _template_files(files: dict[str, bytes], chat_template: str | Path | None) -> dict[str, bytes]:
    from chuk_lib.data.tokenizers.ready import find_template

    name = "chat_template.jinja"
    own = name in files or "chat_template" in json.loads(files.get("tokenizer_config.json", b"{}"))
    if str(chat_template) == "none" or (chat_template is None and own):
        return {}
    _check_template_tokens(
        files["tokenizer.json"], str(chat_template or "chatml"), chat_template is None
    )
    return {name: find_template(chat_template or "chatml").encode()}


def _check_template_tokens(tokenizer: bytes, template: str, by_default: bool) -> None:
    """Raise ConfigError when a ready template that was asked for writes tokens that the tokenizer
    does not have."""
    from tokenizers import Tokenizer

    from chuk_lib.data.tokenizers.ready import READY

    made = Tokenizer.from_str(tokenizer.decode())
    lacking = (
        [token for token in READY[template].tokens if made.token_to_id(token) is None]
        if template in READY
        else []
    )
    if lacking and not by_default:
        raise ConfigError(
            f"chat template `{template}` needs tokens that the tokenizer does not have:"
            f" {', '.join(lacking)}",
            f"train one that has them: `chuk tokenizer train --chat-template {template}`",
        )


def _token_ids(tokenizer: _TokenizerFiles) -> dict[str, Any]:
    eos: int | list[int] = (
        tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids)
    )
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_id}


def _config_files(
    shape: Preset, tokenizer: _TokenizerFiles, rows: int, context: int
) -> dict[str, bytes]:
    ids = _token_ids(tokenizer)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": rows,
        "max_position_embeddings": context,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": _initial_std(shape),
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        **ids,
    }
    return {"config.json": _json(config), "generation_config.json": _json(ids)}


def _weights(shape: Preset, rows: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by Hugging Face name, float32. Drawn in this order from one stream."""
    import numpy as np

    random = np.random.Generator(np.random.PCG64(seed))

    std = _initial_std(shape)

    def normal(outputs: int, inputs: int, std: float = std) -> np.ndarray:
        return random.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(std)

    def ones() -> np.ndarray:
        return np.ones(shape.hidden_size, dtype=np.float32)

    hidden, inner, head = shape.hidden_size, shape.intermediate_size, shape.head_dim
    residual = std / math.sqrt(2 * shape.num_layers)
    yield "model.embed_tokens.weight", normal(rows, hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", ones()
        yield prefix + "self_attn.q_proj.weight", normal(shape.num_heads * head, hidden)
        yield prefix + "self_attn.k_proj.weight", normal(shape.num_kv_heads * head, hidden)
        yield prefix + "self_attn.v_proj.weight", normal(shape.num_kv_heads * head, hidden)
        yield prefix + "self_attn.o_proj.weight", normal(hidden, shape.num_heads * head, residual)
        yield prefix + "post_attention_layernorm.weight", ones()
        yield prefix + "mlp.gate_proj.weight", normal(inner, hidden)
        yield prefix + "mlp.up_proj.weight", normal(inner, hidden)
        yield prefix + "mlp.down_proj.weight", normal(hidden, inner, residual)
    yield "model.norm.weight", ones()


def _initial_std(shape: Preset) -> float:
    return math.sqrt(2 / (5 * shape.hidden_size))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
