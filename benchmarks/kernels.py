"""Record which CUDA kernels training needs, into chuk_lib/runtime/kernels.json.gz: `python benchmarks/kernels.py`.

Needs an NVIDIA GPU, gcc and about three minutes on 16 cores. For each algorithm, with adapters and with all weights,
tiny models of the usual families train two steps in a process of their own, whose calls of NVRTC a small library
writes down: headers and options once, source and kernel names of each module. Kernels do not depend on sizes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "chuk_lib" / "runtime" / "kernels.json.gz"
ALGORITHMS = ("sft", "dpo", "grpo", "ppo", "kto", "orpo", "cpo", "reward")
FAMILIES = ("llama", "qwen3", "qwen2")
ROWS = (64, 80, 32, 16, 8)
SECONDS = 170
NOTICE = "headers and generated sources: MLX, MIT License, Copyright (c) 2023 Apple Inc."
SPY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int number = 0;
static void* real(const char* name) {
  static void* library = 0;
  if (!library) library = dlopen("libnvrtc.so.13", RTLD_LAZY);
  return dlsym(library, name);
}
static void note(int id, const char* kind, const char* text) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%d-%d.%s", getenv("SPY_FOLDER"), (int)getpid(), id, kind);
  FILE* file = fopen(path, "ab");
  fwrite(text, 1, __builtin_strlen(text), file);
  fputc(0, file);
  fclose(file);
}
int nvrtcCreateProgram(void** p, const char* source, const char* name, int count, const char* const* headers,
                       const char* const* names) {
  typedef int F(void**, const char*, const char*, int, const char* const*, const char* const*);
  note(++number, "source", name);
  note(number, "source", source);
  for (int i = 0; number == 1 && i < count; ++i) { note(0, "headers", names[i]); note(0, "headers", headers[i]); }
  return ((F*)real("nvrtcCreateProgram"))(p, source, name, count, headers, names);
}
int nvrtcAddNameExpression(void* p, const char* name) {
  note(number, "kernels", name);
  return ((int (*)(void*, const char*))real("nvrtcAddNameExpression"))(p, name);
}
int nvrtcCompileProgram(void* p, int count, const char* const* options) {
  for (int i = 0; number == 1 && i < count; ++i) note(0, "options", options[i]);
  return ((int (*)(void*, int, const char* const*))real("nvrtcCompileProgram"))(p, count, options);
}
"""
DECODE = """
import sys
import mlx.core as mx
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import LoRAConfig, load_model
lora = LoRAConfig(rank=8, alpha=16, targets=("all-linear",)) if sys.argv[2] == "lora" else None
model, tokenizer = load_model(sys.argv[1], lora=lora, dtype="float32" if lora is None else "auto")
for rows in map(int, sys.argv[3].split(",")):
    for temperature in (1.0, 0.0):
        rollouts(model, tokenizer, [[5, 6, 7]], SamplingConfig(temperature=temperature, max_tokens=3, seed=0),
                 group_size=rows)
"""


def make_model(family: str, folder: Path) -> Path:
    """A folder of a tiny model whose heads are as wide as those of real ones."""
    from importlib import import_module

    import mlx.core as mx
    from mlx.utils import tree_flatten

    from chuk_lib.models import create_model

    create_model("nano", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": family, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "tie_word_embeddings": True, "max_position_embeddings": 512,
    }  # fmt: skip
    module = import_module(f"mlx_lm.models.{family}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = {name: leaf for name, leaf in tree_flatten(model.parameters()) if "lm_head" not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [names[family]]}))
    return folder


def write_data(folder: Path) -> None:
    """Rows for every algorithm."""
    sums = [(f"{a}+{b}=", str(a + b), str(a + b + 1)) for a in range(4, 12) for b in range(4, 12)]
    kinds: dict[str, Any] = {
        "sft": [{"prompt": p, "completion": good} for p, good, _ in sums],
        "dpo": [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in sums],
        "kto": [
            {"prompt": p, "completion": good if i % 2 else bad, "label": bool(i % 2)}
            for i, (p, good, bad) in enumerate(sums)
        ],
        "grpo": [{"prompt": p, "answer": good} for p, good, _ in sums],
    }
    kinds |= dict.fromkeys(("orpo", "cpo", "reward"), kinds["dpo"]) | {"ppo": kinds["grpo"]}
    for name, rows in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def record(algorithm: str, trained: str, models: dict[str, Path], scratch: Path) -> None:
    """Train on each model in processes that are spied on; they share a cache of their own."""
    folder = scratch / f"{algorithm}-{trained}"
    (folder / "spy").mkdir(parents=True)
    env = os.environ | {
        "MLX_PTX_CACHE_DIR": str(folder / "ptx"), "SPY_FOLDER": str(folder / "spy"),
        "LD_PRELOAD": str(scratch / "spy.so"), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    for family, model in models.items():
        words = ["train", algorithm, "--model", model, "--data", scratch / f"{algorithm}.jsonl", "--max-steps", 2]
        words += ["--batch-size", 8, "--set", "gradient_accumulation_steps=2", "--output", folder / family, "--quiet"]
        words += ["--eval-data", scratch / f"{algorithm}.jsonl"]
        if trained == "lora":
            words += ["--lora", "--set", "lora_target_modules=all-linear"]
        if algorithm in ("grpo", "ppo"):
            words += ["--reward", "exact_match", "--set", "max_completion_length=8"]
        if algorithm == "grpo":
            words += ["--set", "beta=0.01"] if family == "llama" else []
        run([sys.executable, "-m", "chuk_cli", *map(str, words)], env)
        if algorithm in ("grpo", "ppo"):
            rows = ",".join(map(str, ROWS))
            run([sys.executable, "-c", DECODE, str(model), trained, rows], env)


def run(command: list[str], env: dict[str, str]) -> None:
    """A command, whose last lines are shown when it fails."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(" ".join(command[:14]), f"took more than {SECONDS} s", flush=True)
        return
    if done.returncode:
        print(" ".join(command[:14]), done.stderr[-700:], flush=True)


def collect(scratch: Path) -> dict[str, Any]:
    """What the spies wrote, as `chuk_lib.runtime.known_kernels` reads it."""
    import mlx.core as mx

    headers: dict[str, str] = {}
    options: list[str] = []
    modules: dict[str, Any] = {}
    uses: dict[str, list[str]] = {}
    home = str(Path(mx.__file__).resolve().parent)
    for spy in sorted(scratch.glob("*/spy")):
        algorithm, trained = spy.parent.name.split("-")
        used = uses.setdefault(f"{algorithm}/{trained}", [])
        for path in sorted(spy.glob("*.source"), key=lambda path: path.stat().st_mtime):
            name, source = _texts(path)
            kernels = _texts(path.with_suffix(".kernels"))
            modules[name.removesuffix(".cu")] = {"source": source, "kernels": kernels}
            if name.removesuffix(".cu") not in used:
                used.append(name.removesuffix(".cu"))
        for path in spy.glob("*-0.headers"):
            parts = _texts(path)
            headers = headers or dict(zip(parts[::2], parts[1::2], strict=True))
        for path in spy.glob("*-0.options"):
            options = options or _texts(path)
    architecture = str(mx.device_info(mx.default_device())["architecture"])
    print(options, flush=True)
    options = [option.replace(home, "{mlx}").replace(architecture, "{arch}") for option in options]
    for place in ("/usr/local/cuda/include", *(f"{folder}/nvidia/cu13/include" for folder in sys.path)):
        options = [option.replace(place, "{cuda}") for option in options]
    return {
        "mlx": metadata.version("mlx"), "notice": NOTICE, "options": options, "headers": headers, "modules": modules,
        "uses": uses,
    }  # fmt: skip


def _texts(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\0")[:-1]


def main() -> None:
    """Record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--uses", default=",".join(f"{a}/{t}" for a in ALGORITHMS for t in ("lora", "full")))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "spy.c").write_text(SPY)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", scratch / "spy.so", scratch / "spy.c", "-ldl"], check=True
        )
        write_data(scratch)
        models = {family: make_model(family, scratch / f"model-{family}") for family in options.families.split(",")}
        jobs = []
        with ThreadPoolExecutor(16) as pool:
            for use in options.uses.split(","):
                jobs.append(pool.submit(record, *use.split("/"), models, scratch))
        for job in jobs:
            job.result()
        data = collect(scratch)
    content = json.dumps(data, sort_keys=True).encode()
    options.output.write_bytes(gzip.compress(content, mtime=0))
    sizes = {use: len(names) for use, names in data["uses"].items()}
    print(len(data["modules"]), "modules;", options.output.stat().st_size, "bytes;", sizes)
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
