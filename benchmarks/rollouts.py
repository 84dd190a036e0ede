"""Tokens a second of rollouts: chuk beside a bare decode loop, mlx-lm's BatchGenerator and
mlx-lm-lora's GRPO.

    python benchmarks/rollouts.py [--rounds 3] [--lora-python V/bin/python]   on a CPU: ratios and their limits
    python benchmarks/rollouts.py --gpu [--rows 1,8,64,256] [--check]  on a GPU: ways to decode, 1.2 billion
    python benchmarks/rollouts.py --gpu --lora 8,64 [--check]          … and what adapters cost

CPU: Llama shapes of 1 and 28 million parameters, random weights, float32, all with the same fast
BLAS; group 8, 64 new tokens at temperature 1, prompts of 32 and 512 tokens, nothing ends early. A
figure is generated tokens by the seconds of the whole call, prefill included; each tool runs in a
process of its own, rounds alternate, the best of three calls counts and the median of the rounds is
compared. mlx-lm-lora runs from a virtual environment of its own (`python -m venv V; V/bin/pip
install mlx-lm-lora mlx[cpu] scipy-openblas32 threadpoolctl`), which `--lora-python` names; without
it those rows are left out.

GPU: needs mlx, mlx_lm and numpy only. `--check` first compares the ways with each other and with a
fresh forward pass. Prompt 128, 128 new tokens; the two baselines are greedy and make no log-probs,
chuk samples at temperature 1 with log-probs. Prefill is left out of all figures."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

GROUP, NEW_TOKENS = 8, 64
SHAPES = {"1M": (128, 512, 4, 4, 2, 1024), "28M": (512, 1792, 8, 8, 4, 1024)}
LIMITS = {
    ("bare loop", 32): 0.85,
    ("BatchGenerator", 32): 1.3,
    ("BatchGenerator", 512): 2.0,
    ("mlx-lm-lora, defaults", 32): 8.0,
    ("mlx-lm-lora, batch 8", 32): 1.2,
}
TOOLS = ("chuk", "bare loop", "BatchGenerator", "mlx-lm-lora, defaults", "mlx-lm-lora, batch 8")


class Endless:
    """A tokenizer without an end token; what it decodes does not matter here."""

    eos_token_ids: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """No text."""
        return ""


def make_model(shape: tuple[int, ...], dtype: Any = None) -> Any:
    """A Llama with random weights: hidden, intermediate, layers, heads, key heads, vocabulary."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    hidden, intermediate, layers, heads, kv_heads, vocabulary = shape
    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
            vocab_size=vocabulary,
            rope_theta=500_000.0,
            tie_word_embeddings=True,
        )
    )
    model.set_dtype(dtype or mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


def make_prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random token ids."""
    random = np.random.default_rng(0)
    return [random.integers(1, vocabulary - 1, length).tolist() for _ in range(count)]


def run_chuk(model: Any, prompts: list[list[int]]) -> int:
    """Generated tokens of one call."""
    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.inference.rollouts import rollouts

    config = SamplingConfig(temperature=1.0, max_tokens=NEW_TOKENS, seed=0)
    return sum(
        len(row.ids) for row in rollouts(model, Endless(), prompts, config, group_size=GROUP)
    )


def run_bare(model: Any, prompts: list[list[int]]) -> int:
    """One prefill a prompt, repeated for its group, and a plain loop: sampled tokens, no
    log-probs."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    model(mx.array(prompts)[:, :-1], cache=cache)
    for layer in cache:
        layer.keys, layer.values = (
            mx.repeat(layer.keys, GROUP, axis=0),
            mx.repeat(layer.values, GROUP, axis=0),
        )
    tokens = mx.repeat(mx.array(prompts)[:, -1], GROUP)
    mx.eval([layer.state for layer in cache])
    for _ in range(NEW_TOKENS):
        tokens = mx.random.categorical(model(tokens[:, None], cache=cache)[:, -1])
        mx.async_eval(tokens)
    mx.eval(tokens)
    return NEW_TOKENS * tokens.size


def run_batch_generator(model: Any, prompts: list[list[int]]) -> int:
    """mlx-lm: each completion is a prompt of its own."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    rows = [prompt for prompt in prompts for _ in range(GROUP)]
    generator = BatchGenerator(
        model, max_tokens=NEW_TOKENS, sampler=make_sampler(1.0), completion_batch_size=len(rows)
    )
    generator.insert(rows)
    tokens = 0
    while responses := generator.next_generated():
        tokens += len(responses)
    return tokens


def run_lora(model: Any, prompts: list[list[int]], batch_size: int) -> int:
    """mlx-lm-lora's own GRPO generation; `batch_size` bounds the rows that decode together."""
    from mlx_lm_lora.trainer.grpo_trainer import generate_grpo

    completions, _, _ = generate_grpo(
        model=model,
        tokenizer=Endless(),
        prompt_tokens=prompts,
        max_tokens=NEW_TOKENS,
        group_size=GROUP,
        batch_size=batch_size,
        end_token="",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
    )
    return sum(completion.size for completion in completions)


def run_tool(tool: str, shape: str, prompt: int, groups: int) -> float:
    """Tokens a second, the best of three calls after one to warm up."""
    import mlx.core as mx

    from chuk_lib.runtime import prepare

    prepare()
    if tool != "chuk":
        mx.enable_compile()  # as mlx-lm runs
    runs: dict[str, Callable[[Any, list[list[int]]], int]] = {
        "chuk": run_chuk,
        "bare loop": run_bare,
        "BatchGenerator": run_batch_generator,
        "mlx-lm-lora, defaults": lambda model, prompts: run_lora(model, prompts, 1),
        "mlx-lm-lora, batch 8": lambda model, prompts: run_lora(model, prompts, 8),
    }
    model = make_model(SHAPES[shape])
    prompts = make_prompts(groups, prompt, SHAPES[shape][-1])
    best = 0.0
    for call in range(4):
        began = time.perf_counter()
        tokens = runs[tool](model, prompts)
        speed = tokens / (time.perf_counter() - began)
        best = max(best, speed) if call else 0.0
    return best


def run_apart(tool: str, shape: str, prompt: int, groups: int, python: str) -> float:
    """The same in a process of its own."""
    command = [python, __file__, "--tool", tool, "--case", f"{shape},{prompt},{groups}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def on_cpu(rounds: int, lora_python: str | None) -> bool:
    """Print the table; whether all limits hold."""
    kept = True
    print(
        "| model | prompt | rows | tool | tokens/s | chuk by it | limit |\n| --- | --- | --- | ---"
        " | --- | --- | --- |"
    )
    for shape in SHAPES:
        for prompt, groups in ((32, 1), (32, 4), (512, 1)):
            tools = [tool for tool in TOOLS if lora_python or "lora" not in tool]
            found: dict[str, list[float]] = {tool: [] for tool in tools}
            for _ in range(rounds):
                for tool in tools:
                    python = lora_python if lora_python and "lora" in tool else sys.executable
                    found[tool].append(run_apart(tool, shape, prompt, groups, python))
            for tool in tools:
                ratio = statistics.median(
                    a / b for a, b in zip(found["chuk"], found[tool], strict=True)
                )
                limit = LIMITS.get((tool, prompt)) if groups == 1 else None
                kept = kept and (limit is None or ratio >= limit)
                words = (
                    "" if limit is None else f"{limit:g} {'holds' if ratio >= limit else 'MISSED'}"
                )
                speed = statistics.median(found[tool])
                print(
                    f"| {shape} | {prompt} | {groups * GROUP} | {tool} | {speed:,.0f} | {ratio:.2f}"
                    f" | {words} |",
                    flush=True,
                )
    return kept


WAYS = ("plain", "window", "layers", "kernels")
PROMPT, STEPS, VOCABULARY = 128, 128, 128_256
BILLION = (2048, 8192, 16, 32, 8, VOCABULARY)


def growing_loop(model: Any, rows: int, prompt: int, steps: int) -> float:
    """mlx-lm's growing cache in a plain loop, greedy."""
    import mlx.core as mx

    tokens, cache = _prefill(model, rows, prompt)
    began = time.perf_counter()
    for _ in range(steps):
        tokens = mx.argmax(model(tokens[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(tokens)
    mx.eval(tokens)
    return rows * steps / (time.perf_counter() - began)


def _prefill(model: Any, rows: int, prompt: int) -> tuple[Any, list[Any]]:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    ids = mx.array(make_prompts(rows, prompt, model.args.vocab_size))
    cache = make_prompt_cache(model)
    tokens = mx.argmax(model(ids, cache=cache)[:, -1], axis=-1)
    mx.eval(tokens, [layer.state for layer in cache])
    return tokens, cache


class Fixed:
    """A buffer written at an array's place, whose mask hides what is not written."""

    def __init__(self, keys: Any, values: Any, offset: Any) -> None:
        self.keys, self.values, self.offset = keys, values, offset

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Write one column."""
        import mlx.core as mx

        self.keys = mx.slice_update(self.keys, keys, self.offset, axes=(2,))
        self.values = mx.slice_update(self.values, values, self.offset, axes=(2,))
        return self.keys, self.values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """Bool (1, 1, 1, C)."""
        import mlx.core as mx

        return (mx.arange(self.keys.shape[2]) <= self.offset)[None, None, None, :]


def compiled_loop(model: Any, rows: int, prompt: int, steps: int) -> float:
    """Fixed buffers and one compiled step, greedy."""
    import mlx.core as mx

    def run(tokens: Any, offset: Any, buffers: Any) -> tuple[Any, Any, Any]:
        caches = [Fixed(keys, values, offset) for keys, values in buffers]
        logits = model(tokens[:, None], cache=caches)[:, -1].astype(mx.float32)
        return (
            mx.argmax(logits, axis=-1),
            offset + 1,
            [(cache.keys, cache.values) for cache in caches],
        )

    step = mx.compile(run)
    tokens, cache = _prefill(model, rows, prompt)
    room = [(0, 0), (0, 0), (0, STEPS), (0, 0)]
    buffers: Any = [
        (mx.pad(layer.keys[..., :prompt, :], room), mx.pad(layer.values[..., :prompt, :], room))
        for layer in cache
    ]
    offset = mx.array([prompt])
    mx.eval(buffers)
    began = time.perf_counter()
    for _ in range(steps):
        tokens, offset, buffers = step(tokens, offset, buffers)
        mx.async_eval(tokens, buffers)
    mx.eval(tokens)
    return rows * steps / (time.perf_counter() - began)


def chuk_loop(model: Any, rows: int, prompt: int, steps: int, decode: Any) -> float:
    """chuk's engine in one of its ways, sampling with log-probs; groups of up to 8 share a
    prompt."""
    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.inference.decoder.draws import Arrival
    from chuk_lib.inference.decoder.engines import new_engine

    config = SamplingConfig(temperature=1.0, max_tokens=STEPS, seed=0)
    engine = new_engine(model, STEPS, decode=decode)
    members = list(range(min(rows, GROUP)))
    prompts = make_prompts(rows // len(members), prompt, model.args.vocab_size)
    arrivals = [
        Arrival(ids, config, number, m, STEPS)
        for number, ids in enumerate(prompts)
        for m in members
    ]
    engine.admit(arrivals, [memory for memory in engine.prefill(prompts) for _ in members])
    engine.step()
    began = time.perf_counter()
    for step in range(1, steps):
        engine.step(last=step == steps - 1)
    return rows * (steps - 1) / (time.perf_counter() - began)


def adapt(model: Any, rank: int) -> None:
    """Adapters on all projections, none of whose factors is zero."""
    import mlx.core as mx
    import mlx.nn as nn

    from chuk_lib.models.lora import AdapterSpec, adapters_of, add_adapters

    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers" in path
    ]
    add_adapters(model, dict.fromkeys(paths, AdapterSpec(rank, 2.0)))
    for path, layer in adapters_of(model).items():
        layer.lora_b = 0.02 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(len(path)))
    mx.eval(model.parameters())


def with_adapters(rows_list: list[int], small: bool, ranks: Sequence[int]) -> None:
    """Print tokens a second without adapters and with those of each rank."""
    import mlx.core as mx

    shape = (64, 128, 2, 4, 2, 320) if small else BILLION
    kinds = [
        "none",
        *(f"rank {rank}" for rank in ranks),
        *(f"rank {rank} by none" for rank in ranks),
    ]
    print(f"| rows | {' | '.join(kinds)} |\n|{' --- |' * (len(kinds) + 1)}")
    speeds: dict[tuple[int, int], float] = {}
    for rank in (0, *ranks):
        model = make_model(shape, mx.float32 if small else mx.bfloat16)
        if rank:
            adapt(model, rank)
        for rows in rows_list:
            chuk_loop(model, rows, PROMPT, 8, "auto")
            speeds[rows, rank] = max(
                chuk_loop(model, rows, PROMPT, STEPS, "auto") for _ in range(2)
            )
        del model
        mx.clear_cache()
    for rows in rows_list:
        found = [speeds[rows, rank] for rank in (0, *ranks)]
        shares = [f"{speed / found[0]:.2f}" for speed in found[1:]]
        print(
            f"| {rows} | {' | '.join([*(f'{speed:,.0f}' for speed in found), *shares])} |",
            flush=True,
        )


def on_gpu(rows_list: list[int], small: bool) -> None:
    """Print the table."""
    import mlx.core as mx

    shape = (64, 128, 2, 4, 2, 320) if small else BILLION
    model = make_model(shape, mx.float32 if small else mx.bfloat16)
    print(mx.default_device(), mx.__version__, flush=True)
    ways: dict[str, Callable[[int, int], float]] = {
        "growing cache": lambda rows, steps: growing_loop(model, rows, PROMPT, steps),
        "compiled, whole buffers": lambda rows, steps: compiled_loop(model, rows, PROMPT, steps),
        **{
            f"chuk {decode}": lambda rows, steps, decode=decode: chuk_loop(
                model, rows, PROMPT, steps, decode
            )  # type: ignore[misc]
            for decode in (*WAYS, "auto")
        },
    }
    print(
        f"| rows | {' | '.join(ways)} | chuk auto by the better baseline"
        f" |\n|{' --- |' * (len(ways) + 2)}"
    )
    for rows in rows_list:
        speeds = []
        for way in ways.values():
            way(rows, 8)
            speeds.append(way(rows, STEPS))
            mx.clear_cache()
        ratio = speeds[-1] / max(speeds[:2])
        print(
            f"| {rows} | {' | '.join(f'{speed:,.0f}' for speed in speeds)} | {ratio:.2f} |",
            flush=True,
        )


def main() -> None:
    """Run one of the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora-python", help="interpreter that has mlx-lm-lora")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--rows", default="1,8,64,256")
    parser.add_argument(
        "--check", action="store_true", help="compare the ways before they are timed"
    )
    parser.add_argument(
        "--lora",
        default="",
        metavar="RANKS",
        help="beside the model without adapters, such as 8,64",
    )
    parser.add_argument(
        "--small", action="store_true", help="a tiny shape, to see that the GPU table runs"
    )
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        shape, prompt, groups = options.case.split(",")
        print(json.dumps(run_tool(options.tool, shape, int(prompt), int(groups))))
    elif options.gpu:
        if options.check:
            from benchmarks.rollouts_check import check

            if not check():
                raise SystemExit("a way is further from a fresh pass than it may be")
        rows = [int(rows) for rows in options.rows.split(",")]
        if options.lora:
            with_adapters(rows, options.small, [int(rank) for rank in options.lora.split(",")])
        else:
            on_gpu(rows, options.small)
    elif not on_cpu(options.rounds, options.lora_python):
        raise SystemExit("a limit is missed")


if __name__ == "__main__":
    main()
