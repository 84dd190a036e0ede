"""What a build makes: the rows that `SFTDataset` makes, in the batches that were asked for, always
the same bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.data import BatchPlan, SFTDataset
from chuk_lib.data.batches import BatchFolder, BatchSpec, build
from chuk_lib.data.batches.documents import plan_of
from chuk_lib.data.preference_dataset import PairDataset
from chuk_lib.data.tokenizers import load_tokenizer
from chuk_lib.data.types import Record, Source
from chuk_lib.errors import ConfigError, DataError, ModelError
from tests.batch.conftest import WORDS, pair_rows, text_rows, tree, write_rows


def same_examples(left: Any, right: Any) -> bool:
    """Equal ids and targets; the first token of a row is never a target, whatever its mask says."""
    return len(left) == len(right) and all(
        np.array_equal(one.input_ids, other.input_ids)
        and np.array_equal(one.loss_mask[1:], other.loss_mask[1:])
        for one, other in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("edges", ["auto", "powers", "none", (16, 40)])
def test_rows_are_those_of_the_dataset(
    edges: Any, shuffle: bool, pairs_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    spec = BatchSpec(max_length=64, edges=edges, shuffle=shuffle)
    folder = BatchFolder(build(pairs_file, tokenizer, tmp_path / "out", spec).path, tokenizer)
    assert same_examples(folder.examples, SFTDataset(pairs_file, tokenizer, max_length=64).examples)


CASES: dict[str, dict[str, Any]] = {
    "sft_prompt_completion": {},
    "sft_prompt_completion_conv": {},
    "sft_conversational": {"assistant_only_loss": True},
    "sft_tools": {"assistant_only_loss": True},
    "sft_lm": {},
}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_trl_s_fixtures(name: str, tmp_path: Path) -> None:
    parity = Path(__file__).resolve().parent.parent / "fixtures" / "parity"
    made = load_tokenizer(parity / "models" / "llama-tiny")
    source, rules = parity / "data" / f"{name}.jsonl", CASES[name]
    folder = BatchFolder(
        build(source, made, tmp_path / "out", BatchSpec(max_length=512, **rules)).path, made
    )
    assert same_examples(
        folder.examples, SFTDataset(source, made, max_length=512, **rules).examples
    )


@pytest.mark.parametrize("packing", ["bfd", "bfd_split", "wrapped"])
def test_packed_batches_are_those_of_the_plan(
    packing: str, text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    spec = BatchSpec(max_length=100, packing=packing, shuffle=False, batch_size=4, multiple=1)
    folder = BatchFolder(build(text_file, tokenizer, tmp_path / "out", spec).path, tokenizer)
    data = SFTDataset(text_file, tokenizer, max_length=100, packing=True, packing_strategy=packing)
    plan = folder.plan(shuffle=False)
    want = BatchPlan(
        data.examples,
        batch_size=4,
        shuffle=False,
        packing=packing,
        max_length=100,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert plan.steps == want.steps
    for step in range(plan.steps):
        (mine,), (theirs,) = plan.batches(step), want.batches(step)
        for field in ("input_ids", "loss_mask", "lengths", "segment_ids"):
            assert np.array_equal(getattr(mine, field), getattr(theirs, field)), (step, field)


def test_windows_of_wrapped_rows_join(text_file: Path, tokenizer: Any, tmp_path: Path) -> None:
    made = {}
    for window in (7, 1000):
        spec = BatchSpec(max_length=50, packing="wrapped", shuffle=False, window=window)
        folder = BatchFolder(build(text_file, tokenizer, tmp_path / str(window), spec).path)
        made[window] = [
            folder.read(number).input_ids.tolist() for number in range(len(folder.files))
        ]
    assert made[7] == made[1000]


def test_preference_pairs_are_those_of_the_dataset(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{word}: ", "chosen": " ".join(WORDS[:at]), "rejected": word}
        for at, word in enumerate(WORDS, 2)
    ]
    source = write_rows(
        tmp_path / "pairs.jsonl", [*rows, {"prompt": "x" * 60, "chosen": "a", "rejected": "b"}]
    )
    result = build(
        source,
        tokenizer,
        tmp_path / "out",
        BatchSpec(kind="preference", max_length=48, batch_size=4),
    )
    folder = BatchFolder(result.path, tokenizer)
    want = PairDataset(source, tokenizer, max_length=48)
    assert len(folder) == len(want)
    for mine, theirs in zip(folder.examples, want.examples, strict=True):
        assert all(
            map(
                np.array_equal,
                (mine.prompt, mine.chosen, mine.rejected),
                (theirs.prompt, theirs.chosen, theirs.rejected),
            )
        )
    assert (folder.report.dropped, folder.report.truncated) == (
        want.report.dropped,
        want.report.truncated,
    )
    batch = folder.read(0)
    assert len(batch.lengths) == 2 * 4
    members = sorted(
        index
        for step in range(folder.plan().steps)
        for part in folder.plan().micro_batches(step)
        for index in part
    )
    assert members == list(range(len(folder)))


def test_pretraining_loses_no_token_of_a_long_document(tokenizer: Any, tmp_path: Path) -> None:
    text = " ".join(WORDS * 9)
    source = write_rows(tmp_path / "long.jsonl", [{"text": text}])
    spec = BatchSpec(kind="pretrain", max_length=32, shuffle=False, edges=(32,))
    folder = BatchFolder(build(source, tokenizer, tmp_path / "out", spec).path)
    whole = SFTDataset(source, tokenizer, max_length=None)[0].input_ids.tolist()
    targets = [token for one in folder.examples for token in one.input_ids[1:].tolist()]
    assert targets == whole[1:]
    assert whole[-1] == tokenizer.eos_token_id
    assert sum(one.trained_tokens for one in folder.examples) == len(whole) - 1


def test_batches_have_one_width_from_the_edges_and_the_rows_asked_for(
    text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    spec = BatchSpec(max_length=512, edges=(64, 128), batch_size=4)
    folder = BatchFolder(build(text_file, tokenizer, tmp_path / "out", spec).path)
    assert folder.manifest is not None
    assert folder.manifest.settings["edges"] == [64, 128, 512]
    assert {entry.length for entry in folder.files} <= {64, 128, 512}
    assert max(entry.rows for entry in folder.files) == 4
    budget = BatchSpec(max_length=512, edges=(64, 128), tokens_per_batch=1024)
    folder = BatchFolder(build(text_file, tokenizer, tmp_path / "budget", budget).path)
    assert max(entry.rows for entry in folder.files if entry.length == 64) == 16
    assert max(entry.rows * entry.length for entry in folder.files) <= 1024


OPTIONS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 40},
    "edges": {"edges": "powers"},
    "buckets": {"buckets": 2},
    "multiple": {"multiple": 32},
    "batch_size": {"batch_size": 3},
    "tokens_per_batch": {"tokens_per_batch": 512},
    "packing": {"packing": "bfd"},
    "shuffle": {"shuffle": False},
    "window": {"window": 9},
    "seed": {"seed": 1},
    "completion_only_loss": {"completion_only_loss": False},
    "format": {"format": "text"},
    "text_field": {"format": "text", "text_field": "completion"},
    "kind": {"kind": "pretrain", "format": "text"},
    "prefix": {"prefix": "mine"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_changes_the_batches(name: str, tokenizer: Any, tmp_path: Path) -> None:
    rows = [{**row, "text": "long " * 40 + row["completion"]} for row in pair_rows(30)]
    source = write_rows(tmp_path / "both.jsonl", rows)
    changes = OPTIONS[name]
    base = {"max_length": 128, **({"format": "text"} if name in ("text_field", "kind") else {})}
    plain = build(source, tokenizer, tmp_path / "plain", BatchSpec(**base))
    changed = build(source, tokenizer, tmp_path / "changed", BatchSpec(**{**base, **changes}))
    contents = [
        sorted(entry.sha256 + entry.name for entry in made.manifest.files)
        for made in (plain, changed)
    ]
    assert contents[0] != contents[1]


def test_assistant_only_loss_changes_the_batches(tokenizer: Any, tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    }
    source = write_rows(tmp_path / "chat.jsonl", [row])
    all_tokens = build(source, tokenizer, tmp_path / "all").manifest.report["trained_tokens"]
    answer = build(
        source, tokenizer, tmp_path / "own", BatchSpec(assistant_only_loss=True)
    ).manifest.report
    assert 0 < answer["trained_tokens"] < all_tokens


@pytest.mark.parametrize("packing", [None, "bfd", "wrapped"])
def test_processes_and_blocks_change_nothing(
    packing: str | None, tiny_model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    spec = BatchSpec(max_length=128, packing=packing, window=25)
    trees = []
    for number, (workers, block_bytes) in enumerate([(1, 1 << 20), (1, 700), (2, 1500)]):
        path = tmp_path / str(number)
        build(text_file, tiny_model_dir, path, spec, workers=workers, block_bytes=block_bytes)
        trees.append(tree(path))
    assert trees[0] == trees[1] == trees[2]


def test_processes_render_chats_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": word},
                {"role": "assistant", "content": word * 2},
            ]
        }
        for word in WORDS
    ]
    source = write_rows(tmp_path / "chat.jsonl", rows)
    spec = BatchSpec(assistant_only_loss=True)
    build(source, tiny_model_dir, tmp_path / "one", spec, workers=1)
    build(source, tiny_model_dir, tmp_path / "two", spec, workers=2, block_bytes=300)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_formats_of_the_source_change_nothing_but_its_hash(tokenizer: Any, tmp_path: Path) -> None:
    rows = text_rows(40)
    write_rows(tmp_path / "a.jsonl", rows)
    lines = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.txt").write_text("\n\n".join(row["text"] for row in rows) + "\n")
    (tmp_path / "e.csv").write_text("text\n" + "".join(row["text"] + "\n" for row in rows))
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n"))
    found = {}
    spec = BatchSpec(edges=(64, 256))
    for path in sorted(tmp_path.glob("?.*")):
        made = build(path, tokenizer, tmp_path / f"out-{path.name}", spec).manifest
        found[path.name] = [entry.sha256 for entry in made.files]
    assert len(found) == 6
    assert len({tuple(hashes) for hashes in found.values()}) == 1


def test_a_second_build_of_the_same_is_left_alone_and_another_refused(
    pairs_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    build(pairs_file, tokenizer, output)
    before = tree(output)
    assert build(pairs_file, tokenizer, output).state == "unchanged"
    with pytest.raises(ConfigError, match="holds batches of other data or settings"):
        build(pairs_file, tokenizer, output, BatchSpec(batch_size=2))
    assert tree(output) == before
    assert (
        build(pairs_file, tokenizer, output, BatchSpec(batch_size=2), overwrite=True).state
        == "built"
    )
    assert tree(output) != before
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_what_is_no_batch_is_never_replaced(
    pairs_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"thesis\.tex"):
            build(pairs_file, tokenizer, output, overwrite=overwrite)
    (output / "thesis.tex").rename(output / "old.npz")
    with pytest.raises(ConfigError, match="is not empty"):
        build(pairs_file, tokenizer, output)
    assert [path.name for path in output.iterdir()] == ["old.npz"]
    assert not (tmp_path / "out.partial").exists()


def test_a_broken_row_is_named_with_its_line_and_leaves_nothing(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", text_rows(50))
    for number, broken in enumerate(
        ['{"text": 3}', '{"text": "cut', "[1]", '{"text": "\\ud83d"}', "{" * 500]
    ):
        lines = source.read_text().splitlines()
        lines[32] = broken
        (tmp_path / "broken.jsonl").write_text("\n".join(lines))
        for workers in (1, 2) if number < 2 else (1,):
            with pytest.raises(DataError, match=r"`.*broken\.jsonl` line 33"):
                build(
                    tmp_path / "broken.jsonl",
                    tiny_model_dir,
                    tmp_path / "out",
                    workers=workers,
                    block_bytes=500,
                )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_settings_that_cannot_be_are_refused(
    pairs_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    for changes, words in (
        ({"kind": "other"}, "kinds"),
        ({"packing": "best"}, "strategies"),
        ({"edges": "wide"}, "auto, powers"),
        ({"edges": (2000,)}, "padded lengths"),
        ({"kind": "preference", "packing": "bfd"}, "leave packing off"),
        ({"kind": "pretrain", "packing": "bfd"}, "bfd_split"),
        ({"tokens_per_batch": 100}, "raise"),
        ({"prefix": "../x"}, "letters"),
        ({"max_length": 1}, ""),
    ):
        with pytest.raises(ConfigError) as caught:
            build(pairs_file, tokenizer, tmp_path / "out", BatchSpec(**changes))
        assert words in caught.value.hint
    with pytest.raises(DataError, match="plain text"):
        build(pairs_file, tokenizer, tmp_path / "out", BatchSpec(kind="pretrain"))
    with pytest.raises(ModelError):
        build(pairs_file, tmp_path / "nowhere", tmp_path / "out")


def test_files_are_what_numpy_reads_and_older_tools_expect(
    pairs_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    build(pairs_file, tokenizer, tmp_path / "out", BatchSpec(max_length=256))
    names = sorted(path.name for path in (tmp_path / "out").glob("*.npz"))
    assert names[0] == "train_batch_0001.npz"
    arrays = np.load(tmp_path / "out" / names[0], allow_pickle=False)
    inputs, targets, mask = (
        arrays[f"{name}_tensor"] for name in ("input", "target", "attention_mask")
    )
    assert inputs.dtype == targets.dtype == mask.dtype == np.int32
    learned = mask[:, :-1] > 0
    assert np.array_equal(targets[:, :-1][learned], inputs[:, 1:][learned])
    ends = arrays["lengths"] - 2
    assert (targets[np.arange(len(ends)), ends] == tokenizer.eos_token_id).all()
    assert (mask[np.arange(len(ends)), ends] == 1).all()
    assert (mask[np.arange(len(ends)), ends + 1] == 0).all()


def test_the_direct_path_gives_what_the_renderer_gives(tmp_path: Path) -> None:
    made = load_tokenizer(
        Path(__file__).resolve().parent.parent / "fixtures" / "parity" / "models" / "llama-tiny"
    )
    end = made.eos_token
    texts = [
        "plain",
        f"ends itself{end}",
        f"{end} begins",
        "日本語 🎉 naïve",
        "  two  spaces\n\n",
        "x" * 300,
        f"a{end}b",
    ]
    pairs = [{"prompt": one, "completion": other} for one in texts for other in texts]
    for name, rows, rules in (
        ("text", [{"text": text} for text in texts], {}),
        ("pairs", pairs, {}),
        ("whole", pairs, {"completion_only_loss": False}),
    ):
        source = write_rows(tmp_path / f"{name}.jsonl", rows)
        plan = plan_of(
            BatchSpec(max_length=64, **rules), Record(rows[0], Source("rows", 1)), made, None
        )
        assert plan.direct is not None
        folder = BatchFolder(
            build(source, made, tmp_path / name, BatchSpec(max_length=64, **rules)).path, made
        )
        want = SFTDataset(source, made, max_length=64, **rules)
        assert same_examples(folder.examples, want.examples)
        counts = (
            "rows",
            "kept",
            "dropped",
            "truncated",
            "tokens",
            "longest",
            "how",
            "loss_on",
            "lengths",
        )
        assert [getattr(folder.report, key) for key in counts] == [
            getattr(want.report, key) for key in counts
        ]
        assert name == "whole" or len(folder.report.notes) == len(want.report.notes)
