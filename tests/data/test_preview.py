"""`chuk data preview`: learned tokens marked, counts, and the report; never by colour alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chuk_lib.data import SFTDataset, preview_rows, read_records


def test_fragments_join_to_the_row(parity: Path, tokenizer: Any) -> None:
    source = parity / "data" / "sft_conversational.jsonl"
    shown = preview_rows(read_records(source), tokenizer, rows=4, assistant_only_loss=True)
    data = SFTDataset(source, tokenizer, assistant_only_loss=True)
    for row, example in zip(shown, data, strict=False):
        assert "".join(part.text for part in row.fragments) == tokenizer.decode(
            example.input_ids.tolist()
        )
        assert sum(part.tokens for part in row.fragments) == row.tokens == len(example)
        assert row.trained_tokens == example.trained_tokens
        assert all(part.role == "assistant" for part in row.fragments if part.trained)


def test_letters_of_many_bytes_stay_whole(tokenizer: Any) -> None:
    rows = [{"prompt": "é 🙂", "completion": "ü 🙂 ß"}]
    shown = preview_rows(read_records(rows), tokenizer)
    assert [part.text for part in shown[0].fragments] == ["é 🙂", "ü 🙂 ß<|im_end|>"]


def test_human_output_marks_what_is_learned(run_chuk: Any, parity: Path) -> None:
    model = parity / "models" / "llama-tiny"
    data = parity / "data" / "sft_conversational.jsonl"
    done = run_chuk(
        "data", "preview", "--data", data, "--model", model, "--assistant-only-loss", "--rows", 1
    )
    assert done.returncode == 0
    assert (
        "  user       │ <|im_start|>user↵\n             │ What is 2 plus 3?<|im_end|>↵\n"
        in done.stdout
    )
    assert "             │ ⟦It is 5.<|im_end|>⟧↵\n" in done.stdout
    assert f"`{data}` line 1  73 tokens, 9 learned" in done.stdout
    assert "rows      16 kept, 0 dropped (nothing to learn), 0 cut at 1,024 tokens" in done.stdout
    assert "\x1b" not in done.stdout
    coloured = run_chuk(
        "data",
        "preview",
        "--data",
        data,
        "--model",
        model,
        "--assistant-only-loss",
        "--rows",
        1,
        env={"FORCE_COLOR": "1"},
    )
    assert "\x1b[32m⟦It is 5.<|im_end|>⟧\x1b[0m" in coloured.stdout


def test_json_and_quiet_output(run_chuk: Any, parity: Path, tokenizer: Any) -> None:
    model = parity / "models" / "llama-tiny"
    data = parity / "data" / "sft_prompt_completion.jsonl"
    done = run_chuk(
        "data",
        "preview",
        "--data",
        data,
        "--model",
        model,
        "--rows",
        2,
        "--max-length",
        20,
        "--json",
    )
    result = json.loads(done.stdout)
    assert done.stderr == ""
    assert (result["rows"], result["max_length"], result["format"]) == (16, 20, "prompt_completion")
    assert result["fingerprint"] == SFTDataset(data, tokenizer, max_length=20).fingerprint
    first = result["preview"][0]
    assert (first["tokens"], first["cut"]) == (20, 22)
    assert [part["role"] for part in first["fragments"]] == ["prompt", "completion"]
    quiet = run_chuk(
        "data", "preview", "--data", data, "--model", model, "--max-length", 20, "--quiet"
    )
    assert quiet.stdout == result["fingerprint"] + "\n"


def test_stdin_and_errors(run_chuk: Any, parity: Path) -> None:
    model = parity / "models" / "llama-tiny"
    rows = '{"text": "a b c"}\n{"text": ""}\n'
    done = run_chuk("data", "preview", "--data", "-", "--model", model, input=rows)
    assert "`stdin` line 2  1 tokens, 0 learned: dropped" in done.stdout
    assert "rows      1 kept, 1 dropped" in done.stdout
    done = run_chuk("data", "preview", "--data", "-", "--model", model, input="{")
    assert done.returncode == 1
    assert "error: `stdin` line 1 is not JSON" in done.stderr
