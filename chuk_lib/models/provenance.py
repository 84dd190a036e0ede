"""Where a loaded model came from. Saving an adapter, resuming and reports need it; it travels on
the model itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models.config import Dtype, LoRAConfig

_ATTRIBUTE = "_chuk_provenance"


@dataclass(frozen=True)
class Provenance:
    """`source` is what the user named, `base` the base model's own name (a hub id or a folder),
    `folder` where its weights were read, `config` its config.json (with `quantization` when chuk
    quantized it). `lora` are the adapters on the model, `adapter_folder` where they were read, if
    they were. `conversational`: what the adapters that were merged in saw in training, if that is
    known. `changed` names parameters of the base that an adapter changed; `untied`: its tied head
    got a matrix of its own; `own_tokenizer`: it is not
    the base's. `notes` are things the user should see."""

    source: str
    base: str
    folder: Path
    config: dict[str, Any]
    lora: LoRAConfig | None = None
    adapter_folder: Path | None = None
    revision: str | None = None
    dtype: Dtype = "auto"
    quantized_on_load: bool = False
    conversational: bool | None = None
    changed: tuple[str, ...] = ()
    untied: bool = False
    own_tokenizer: bool = False
    notes: tuple[str, ...] = field(default=())


def provenance_of(model: Any) -> Provenance:
    """What `load_model` knows about a model. Raises ModelError for a model that it did not make."""
    found = find_provenance(model)
    if found is None:
        raise ModelError(
            "this model did not come from load_model", "load it with chuk_lib.models.load_model"
        )
    return found


def find_provenance(model: Any) -> Provenance | None:
    """The same, or None."""
    return getattr(model, _ATTRIBUTE, None)


def was_conversational(found: Provenance) -> bool | None:
    """Whether a model was last trained by chuk on conversations: as the adapters merged into it
    say, its checkpoint, or the config of a merged model; None when nothing says it."""
    if found.conversational is not None:
        return found.conversational
    try:
        state = json.loads(
            ((found.adapter_folder or found.folder) / "state.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        state = None
    said = state.get("conversational") if isinstance(state, dict) else None
    own = found.config.get("chuk")
    if said is None and isinstance(own, dict):
        said = own.get("conversational")
    return said if isinstance(said, bool) else None


def remember(model: Any, provenance: Provenance) -> None:
    """Attach a provenance to a model."""
    object.__setattr__(model, _ATTRIBUTE, provenance)


def update_provenance(model: Any, **changes: Any) -> None:
    """Change fields of a model's provenance; nothing happens when it has none."""
    found = find_provenance(model)
    if found is not None:
        remember(model, replace(found, **changes))
