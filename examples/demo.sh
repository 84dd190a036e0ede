#!/usr/bin/env bash
# The main job from nothing, offline: make a small model, make data, train, measure, ask. Every line that starts
# with $ is a command you can type yourself. Folder: demo/ (or the first argument).
set -euo pipefail
here=${1:-demo}
script_dir=$(cd "$(dirname "$0")/.." && pwd)


run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
say() { printf '\n%s\n' "$*"; }

say "1. A language model of 100 thousand parameters that knows nothing."
run chuk model create --preset micro --output "$here/model" --overwrite

say "2. Additions of 3-digit numbers; train, valid and test share no problem. Answers have the last digit first."
run chuk data generate-math --types addition --difficulty 3 --samples 60000 --reverse-answers --output "$here/data" --overwrite

say "3. What it knows before."
run chuk eval --model "$here/model" --data "$here/data/test.jsonl" --max-rows 500

say "4. Training."
run chuk train sft --config "$script_dir/training_config/demo.yaml" \
  --model "$here/model" --data "$here/data" --output "$here/run" --overwrite

say "5. What it knows after: problems that it has never seen."
run chuk eval --model "$here/run" --data "$here/data/test.jsonl"

say "6. Ask it. 579 is written 975: the last digit comes first."
run chuk infer --model "$here/run" --prompt "123+456="

cat <<EOT

Everything lies in $here/: model (as it began), data, run (checkpoints, config.yaml, events.jsonl).
Try next:
  chuk infer --model $here/run --prompt "808+199="
  chuk train resume $here/run --max-steps 3000
  chuk model info $here/run
  chuk train sft --model YOUR_MODEL --data YOUR_FILE.jsonl --lora --output my-run
EOT
