"""Send a model or adapter to the Hugging Face hub, in one commit, with a card that tells how it was
made.

What is sent is what loading needs, and the licence. Paths of this machine stay here: provenance and
checksums are not sent (the hub has hashes of its own), and the card names folders by their last
part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.create import TOKENIZER_FILES
from chuk_lib.models.headers import ADAPTER_FILES, read_json, weight_files
from chuk_lib.models.hf_config import no_model
from chuk_lib.models.hub import is_hub_id
from chuk_lib.models.sources import ADAPTER_CONFIG, locate_folder
from chuk_lib.models.writing import PROVENANCE
from chuk_lib.utils.seals import check_weights
from chuk_lib.utils.text import first_line

CARD = "README.md"
_BESIDE = (
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    "model.safetensors.index.json",
    "chat_template.jinja",
    "score.safetensors",
    *TOKENIZER_FILES,
)


@dataclass(frozen=True)
class PlannedUpload:
    """What is about to be sent: `files` of `folder`, and a `card` where the folder has none.
    `notes` are what others will stumble over."""

    folder: Path
    model_id: str
    public: bool
    files: tuple[Path, ...]
    card: str | None = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    def send(self, message: str | None = None) -> str:
        """Make the repository where there is none, send all files in one commit, and return its
        address.

        Raises ModelError when the hub refuses, cannot be reached, or has a public repository of
        that name and the upload is not public."""
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        sent = [CommitOperationAdd(path.name, str(path)) for path in self.files]
        if self.card is not None:
            sent.append(CommitOperationAdd(CARD, self.card.encode()))
        api = HfApi()
        try:
            self._repository(api)
            made = api.create_commit(
                self.model_id, sent, commit_message=message or f"Add {self.folder.name}"
            )
        except (HfHubHTTPError, OSError) as error:
            raise ModelError(
                f"cannot send to `{self.model_id}`: {first_line(error)}",
                "check the network and the token: `hf auth login`",
            ) from None
        return str(made.commit_url)

    def _repository(self, api: Any) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            there = api.repo_info(self.model_id)
        except RepositoryNotFoundError:
            api.create_repo(self.model_id, private=not self.public)
            return
        if not there.private and not self.public:
            raise ModelError(
                f"`{self.model_id}` is there already, and public", "add --public, or take a new id"
            )
        if there.private and self.public:
            raise ModelError(
                f"`{self.model_id}` is there already, and private",
                "leave out --public, or make it public on its page first",
            )


def plan_upload(source: str, model_id: str, public: bool = False) -> PlannedUpload:
    """What sending a folder, run, checkpoint or adapter would send; nothing is sent yet.

    Raises ConfigError for text that is no id with an owner, ModelError for what is no model or is
    damaged."""
    if not is_hub_id(model_id) or "/" not in model_id:
        raise ConfigError(f"`{model_id}` is no hub id", "an id looks like `owner/name`")
    folder = locate_folder(source)
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise no_model(folder)
    check_weights(folder)
    adapters = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    weights = adapters or weight_files(folder)
    if not weights:
        raise ModelError(f"`{folder}` has no weights", "nothing to send: name a whole model")
    beside = [folder / name for name in _BESIDE if (folder / name).is_file()]
    beside += [path for path in sorted(folder.glob("LICENSE*")) if path.is_file()]
    own_card = folder / CARD
    files = [*weights, *beside, *([own_card] if own_card.is_file() else [])]
    card = None if own_card.is_file() else "\n".join(_card(folder, model_id)) + "\n"
    unique = tuple(dict.fromkeys(files))
    return PlannedUpload(folder, model_id, public, unique, card, tuple(_notes(folder, model_id)))


def _notes(folder: Path, model_id: str) -> Iterator[str]:
    base = _base_of_adapter(folder)
    if base is not None and not is_hub_id(base):
        yield f"the adapter names its base by a path of this machine, `{base}`: others lack it"
    if not any((folder / name).is_file() for name in ("LICENSE", CARD)):
        yield f"neither a licence nor a card is in `{folder}`: say on the page who may use it"


def _base_of_adapter(folder: Path) -> str | None:
    path = folder / ADAPTER_CONFIG
    said = read_json(path) if path.is_file() else {}
    base = said.get("base_model_name_or_path") or said.get("model")
    return base if isinstance(base, str) else None


def _card(folder: Path, model_id: str) -> Iterator[str]:
    """A model card: the front matter that the hub reads, and how the model was made."""
    path = folder / PROVENANCE
    made = read_json(path) if path.is_file() else {}
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    sources = [str(one["source"]) for one in made.get("inputs", ())]
    bases = [base for base in [_base_of_adapter(folder), *sources] if base and is_hub_id(base)]
    yield from ("---", "library_name: mlx", "pipeline_tag: text-generation")
    if bases:
        yield "base_model:"
        yield from (f"- {base}" for base in dict.fromkeys(bases))
    yield from ("tags:", "- mlx", *(["- lora"] if is_adapter else []), "---", "")
    yield from (f"# {model_id.split('/')[-1]}", "")
    if made:
        yield f"Made by `{made['made_by']}` of chuk {made['version']} from:"
        yield ""
        for one in made.get("inputs", ()):
            name, mark = _shown(str(one["source"])), one.get("fingerprint")
            yield f"- `{name}`" + (f" (weights {mark[:16]})" if mark else "")
        yield from _settings(made.get("settings") or {})
    yield from ("```bash", f"chuk model download {model_id}")
    if not is_adapter:
        yield f'chuk infer --model {model_id} --prompt "…"'
    yield "```"


def _settings(settings: Mapping[str, Any]) -> Iterator[str]:
    given = {name: value for name, value in settings.items() if value not in (None, [], {}, ())}
    if given:
        text = json.dumps(_without_paths(given), indent=1, ensure_ascii=False, default=str)
        yield from ("", "```json", text, "```")
    yield ""


def _without_paths(value: Any) -> Any:
    """Settings with folders by the last part of their path."""
    if isinstance(value, Mapping):
        return {_shown(str(name)): _without_paths(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(source: str) -> str:
    """A path by its last part; an id as it is."""
    is_path = source.startswith((".", "/", "~")) or Path(source).exists()
    return Path(source).name if is_path else source
