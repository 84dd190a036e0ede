"""A corrected copy of a tokenizer: what the doctor found and can mend, and nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from chuk_lib.data.tokenizer_doctor.examine import Finding, examine, is_sound, known_form
from chuk_lib.data.tokenizer_doctor.template_checks import turn_end
from chuk_lib.data.tokenizers.folder import check_target, write_folder
from chuk_lib.data.tokenizers.headers import asked_only
from chuk_lib.data.tokenizers.loader import load_tokenizer, save_tokenizer
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.data.tokenizers.ready import READY, find_template
from chuk_lib.errors import ConfigError

_PADS = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<unk>",
    "[UNK]",
)
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
)


def mend(
    tokenizer: Tokenizer, output: Path, template: str | None = None, overwrite: bool = False
) -> tuple[list[str], list[Finding]]:
    """Write a corrected copy to the folder `output`; what was changed, and what the doctor says of
    the copy.

    `template` is the name of a ready template or a Jinja file that takes the place of the
    tokenizer's own. The tokenizer in memory is changed too. Raises ConfigError when the folder is
    taken or the template does not fit."""
    check_target(output, overwrite)
    hf = unwrap(tokenizer)
    wanted = {finding.fix for finding in examine(tokenizer) if finding.fix}
    done = [
        *_mend_template(tokenizer, hf, template),
        *_mend_eos(tokenizer, hf, wanted),
        *_mend_pad(hf),
    ]
    with tempfile.TemporaryDirectory() as place:
        save_tokenizer(tokenizer, Path(place))
        write_folder(
            output, {item.name: item.read_bytes() for item in Path(place).iterdir()}, overwrite
        )
    return done, examine(load_tokenizer(output))


def _mend_template(tokenizer: Tokenizer, hf: Any, template: str | None) -> list[str]:
    if template is not None:
        text = find_template(template)
        lacking = (
            [token for token in READY[template].tokens if token not in hf.get_vocab()]
            if template in READY
            else []
        )
        if lacking:
            raise ConfigError(
                f"chat template `{template}` needs tokens that the tokenizer does not have:"
                f" {', '.join(lacking)}",
                "choose another template: new tokens would need new embedding rows",
            )
        hf.chat_template = text
        return [f"chat template: {template}"]
    done: list[str] = []
    if hf.chat_template and isinstance(hf.chat_template, str) and is_sound(hf.chat_template):
        asked = asked_only(hf.chat_template, hf.special_tokens_map)
        if asked is not None:
            hf.chat_template = asked
            done.append(
                "the assistant's header at the end of the chat template, now under"
                " add_generation_prompt"
            )
        form = known_form(tokenizer)
        if form is not None:
            hf.chat_template = form
            done.append("generation markers in the chat template")
    return done


def _mend_eos(tokenizer: Tokenizer, hf: Any, wanted: set[str]) -> list[str]:
    """The token that ends turns, where there is a template, else a token that is named like one."""
    end = turn_end(tokenizer) if hf.chat_template else None
    if end is None and hf.eos_token is None and "eos" in wanted:
        end = next((token for token in _ENDS if token in hf.get_vocab()), None)
    ends = getattr(tokenizer, "eos_token_ids", [hf.eos_token_id])
    if end is None or hf.convert_tokens_to_ids(end) in ends:
        return []
    hf.eos_token = end
    return [f"EOS: `{end}`"]


def _mend_pad(hf: Any) -> list[str]:
    if hf.pad_token is not None and hf.pad_token_id != hf.eos_token_id:
        return []
    known = hf.get_vocab()
    free = [token for token in _PADS if token in known and known[token] != hf.eos_token_id]
    reserved = sorted(
        token for token in hf.all_special_tokens if "reserved" in token or "unused" in token
    )
    for token in [*free, *reserved]:
        hf.pad_token = token
        return [f"PAD: `{token}`"]
    return []
