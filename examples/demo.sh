#!/usr/bin/env bash
# The main job from nothing, offline: make a small model and data, train, measure, ask. Everything goes into demo/
# (or the folder given as first argument). SAMPLES=2000 makes fewer problems than the usual 20,000.
set -euo pipefail
here=${1:-demo}
config=$(dirname "$0")/../training_config/demo.yaml
config=${config#examples/../}

bold=$([ -t 1 ] && [ -z "${NO_COLOR:-}" ] && printf '\033[1m' || true)
plain=$([ -n "$bold" ] && printf '\033[0m' || true)
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }
say() { printf '\n%s\n' "$*"; }
began=$(date +%s)

echo "chuk: a language model learns to add from nothing. Lines that begin with \$ are"
echo "commands to type yourself after \`source .venv/bin/activate\`."

say "1. A language model of 100 thousand parameters that knows nothing."
run chuk model create --preset micro --output "$here/model" --overwrite

say "2. Sums of 3-digit numbers. No problem is in two of train, valid and test.
   Numbers are written with the last digit first, the order in which one adds by
   hand: 123+456=579 becomes 321+654=975."
run chuk data generate-math --types addition --difficulty 3 --samples "${SAMPLES:-20000}" \
  --reverse-numbers --output "$here/data" --overwrite

say "3. What it can do before: 1,000 problems that are in no training data."
run chuk eval --model "$here/model" --data "$here/data/test.jsonl"

say "4. Training."
run chuk train sft --config "$config" --model "$here/model" --data "$here/data" --output "$here/run" --overwrite

say "5. What it can do after: the same 1,000 problems. It has never seen them."
run chuk eval --model "$here/run" --data "$here/data/test.jsonl"

say "6. Ask it for 123+456."
run chuk infer --model "$here/run" --prompt "321+654="

cat <<EOT

Done in $(($(date +%s) - began)) s. Everything lies in $here/:
  model   as it began; mlx-lm and transformers load it too
  data    train.jsonl, valid.jsonl, test.jsonl
  run     checkpoints, settings and events; for --model it is a model like any other

Try next (README.md goes on from here):
  source .venv/bin/activate
  chuk infer --model $here/run --prompt "991+808="
  chuk data preview --data $here/data --model $here/model
  chuk runs show $here/run
  chuk train sft --model YOUR_MODEL --data YOUR_FILE.jsonl --lora --output my-run
EOT
