#!/usr/bin/env bash
# The main job from nothing, offline: make a small model and data, train, measure, ask; then let it practise problems
# that it half knows. Everything goes into demo/ (or the folder given as first argument). SAMPLES=2000 makes fewer
# problems than the usual 20,000.
set -euo pipefail
here=${1:-demo}
configs=$(dirname "$0")/../training_config
configs=${configs#examples/../}

bold=$([ -t 1 ] && [ -z "${NO_COLOR:-}" ] && printf '\033[1m' || true)
plain=$([ -n "$bold" ] && printf '\033[0m' || true)
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }
say() { printf '\n%s\n' "$*"; }
at_least() { awk "BEGIN { exit !($1 >= $2) }"; }
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
run chuk train sft --config "$configs/demo.yaml" --model "$here/model" --data "$here/data" --output "$here/run" --overwrite

say "5. What it can do after: the same 1,000 problems. It has never seen them."
run chuk eval --model "$here/run" --data "$here/data/test.jsonl"

say "6. Ask it for 123+456."
run chuk infer --model "$here/run" --prompt "321+654="

say "7. Sums of 4-digit numbers are new to it."
run chuk data generate-math --types addition --difficulty 4 --samples "${SAMPLES:-20000}" \
  --reverse-numbers --output "$here/hard" --overwrite
run chuk eval --model "$here/run" --data "$here/hard/test.jsonl"

say "8. A lesson, cut short as soon as it gets a quarter of 200 problems right."
run chuk train sft --config "$configs/demo-hard.yaml" --model "$here/run" --data "$here/hard" \
  --output "$here/lesson" --overwrite
echo "\$ chuk train resume $here/lesson --max-steps 80 --quiet   # and so on, with"
echo "\$ chuk eval --model $here/lesson --data $here/hard/valid.jsonl --max-rows 200 --quiet"
steps=60
while
  right=$(chuk eval --model "$here/lesson" --data "$here/hard/valid.jsonl" --max-rows 200 --quiet)
  echo "after ${CHUK_MAX_STEPS:-$steps} steps: $right"
  [ -z "${CHUK_MAX_STEPS:-}" ] && [ "$steps" -lt 400 ] && ! at_least "$right" 0.25
do
  steps=$((steps + $(at_least "$right" 0.01 && echo 10 || echo 20)))
  chuk train resume "$here/lesson" --max-steps "$steps" --quiet > /dev/null
done

say "9. Practice (GRPO): nobody shows it an answer again. It answers each problem 8 times
   and is told which ones are right."
run chuk train grpo --config "$configs/demo-grpo.yaml" --model "$here/lesson" --data "$here/hard" \
  --output "$here/practice" --overwrite

say "10. Before and after practice: 1,000 problems that it has never seen."
run chuk eval --model "$here/practice" --against "$here/lesson" --data "$here/hard/test.jsonl"

cat <<EOT

Done in $(($(date +%s) - began)) s. Everything lies in $here/:
  model     as it began; mlx-lm and transformers load it too
  data      train.jsonl, valid.jsonl, test.jsonl; hard: those of step 7
  run       checkpoints, settings and events; for --model it is a model like any other
  lesson    the run of step 8
  practice  the run of step 9, with every answer that it tried and its reward

Try next (README.md goes on from here):
  source .venv/bin/activate
  chuk infer --model $here/run --prompt "991+808="
  chuk infer --model $here/practice --prompt "4321+8765="
  chuk data preview --data $here/data --model $here/model
  chuk runs show $here/practice
  chuk runs show $here/practice --completions --step 1
  chuk train sft --model YOUR_MODEL --data YOUR_FILE.jsonl --lora --output my-run
EOT
