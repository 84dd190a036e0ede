#!/usr/bin/env bash
# The main job from nothing, offline: make a small model and data, train, measure, ask; then let it practise problems
# that it half knows. Everything goes into demo/ (or the folder given as first argument). SEED=1 makes another model,
# other problems and another order; SAMPLES=2000 fewer problems than the usual 20,000. Ends with 1 and a word when
# something was not learned. With CHUK_MAX_STEPS everything is cut short, and nothing is asked of it.
set -euo pipefail
here=${1:-demo}
configs=$(dirname "$0")/../training_config
configs=${configs#examples/../}

bold=$([ -t 1 ] && [ -z "${NO_COLOR:-}" ] && printf '\033[1m' || true)
plain=$([ -n "$bold" ] && printf '\033[0m' || true)
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }
say() { printf '\n%s\n' "$*"; }
stop() { printf '\n%s\n' "$@" >&2; exit 1; }
at_least() { [ -n "$cut_short" ] || awk "BEGIN { exit !($1 >= $2) }"; }
again() { printf 'Another seed may fare better: SEED=%s bash %s %s' "$((${SEED:-0} + 1))" "$0" "$here"; }
cut_short=${CHUK_MAX_STEPS:-}
seed=${SEED:+--seed $SEED}
[ -z "${SEED:-}" ] || export CHUK_SEED=$SEED
began=$(date +%s)

echo "chuk: a language model learns to add from nothing. Lines that begin with \$ are"
echo "commands to type yourself after \`source .venv/bin/activate\`."

say "1. A language model of 100 thousand parameters that knows nothing."
run chuk model create --preset micro $seed --output "$here/model" --overwrite

say "2. Sums of 3-digit numbers. No problem is in two of train, valid and test.
   Numbers are written with the last digit first, the order in which one adds by
   hand: 123+456=579 becomes 321+654=975."
run chuk data generate-math --types addition --difficulty 3 --samples "${SAMPLES:-20000}" $seed \
  --reverse-numbers --output "$here/data" --overwrite

say "3. What it can do before: 1,000 problems that are in no training data."
run chuk eval --model "$here/model" --data "$here/data/test.jsonl"

say "4. Training."
run chuk train sft --config "$configs/demo.yaml" --model "$here/model" --data "$here/data" --output "$here/run" --overwrite

say "5. What it can do after: the same 1,000 problems. It has never seen them."
measure() { # whether it has learned to add
  run chuk eval --model "$here/run" --data "$here/data/test.jsonl" | tee "$here/after.txt"
  right=$(sed -n 's/^exact match \([0-9.]*\) %.*/\1/p' "$here/after.txt")
  at_least "$right" 99
}
measure || {
  say "Not yet. Once more, with the rows in another order."
  run chuk train sft --config "$configs/demo.yaml" --model "$here/model" --data "$here/data" --output "$here/run" \
    --overwrite --seed 1001
  measure
} || stop "It has not learned to add: $right % right." "$(again)"

say "6. Ask it for 123+456."
run chuk infer --model "$here/run" --prompt "321+654="

say "7. Sums of 4-digit numbers are new to it."
run chuk data generate-math --types addition --difficulty 4 --samples "${SAMPLES:-20000}" $seed \
  --reverse-numbers --output "$here/hard" --overwrite
run chuk eval --model "$here/run" --data "$here/hard/test.jsonl"

say "8. A lesson in them, and of its checkpoints the first that gets three quarters of 200
   problems right at least once in eight answers: a model that half knows."
# A model that guesses one digit of each sum is right once in eight for 57 % of them, and has nothing to practise from.
lesson() { # with what else to set; whether its end is good enough
  run chuk train sft --config "$configs/demo-hard.yaml" --model "$here/run" --data "$here/hard" \
    --output "$here/lesson" --overwrite "$@" || exit 1
  knows "$last"
}
knows() { # whether the lesson's checkpoint after $1 steps is good enough to practise
  found=$(chuk eval --model "$here/lesson/checkpoints/$(printf 'step_%06d' "$1")" --data "$here/hard/valid.jsonl" \
    --rows 200 --reward exact_match --samples 8 2> "$here/lesson/eval.log" |
    sed -n 's/.*pass@8 \([0-9.]*\) %.*/\1/p')
  [ -n "$found" ] || { cat "$here/lesson/eval.log" >&2; exit 1; }
  echo "after $1 steps: $found % right at least once in eight"
  at_least "$found" 75
}
echo "\$ chuk eval --model $here/lesson/checkpoints/step_000200 --data $here/hard/valid.jsonl \\"
echo "    --rows 200 --reward exact_match --samples 8   # and so on, after the lesson"
low=0 steps=${cut_short:-500} last=${cut_short:-500}
lesson || lesson --seed 1001 || lesson --seed 1002 --learning-rate 2e-3 || # the rows in another order, then faster
  stop "Three lessons have come to nothing: there is too little to practise from." "$(again)"
while [ $((steps - low)) -gt 20 ]; do
  middle=$(((low + steps) / 40 * 20))
  if knows "$middle"; then steps=$middle; else low=$middle; fi
done
rm -rf "$here/half"
run cp -r "$here/lesson/checkpoints/$(printf 'step_%06d' "$steps")" "$here/half"

say "9. Practice (GRPO): nobody shows it an answer again. It answers each problem 8 times
   and is told which ones are right."
practise() { # from which model, and what else to set; whether that was enough
  run chuk train grpo --config "$configs/demo-grpo.yaml" --model "$1" --data "$here/hard" \
    --output "$here/practice" --overwrite "${@:2}" || exit 1
  right=$(chuk eval --model "$here/practice" --data "$here/hard/valid.jsonl" --quiet 2> /dev/null)
  at_least "$right" 0.96
}
go_on() { # from where the last round was best
  echo "$right of the problems of hard/valid.jsonl right: another round."
  rm -rf "$here/before"
  run cp -r "$here/practice/checkpoints/$(cat "$here/practice/best")" "$here/before"
  practise "$here/before" --learning-rate 5e-4
}
practise "$here/half" || go_on || go_on || stop "The practice is stuck: $right of the problems right after three rounds." "$(again)"

say "10. Before and after practice: 1,000 problems that it has never seen."
run chuk eval --model "$here/practice" --against "$here/half" --data "$here/hard/test.jsonl"

cat <<EOT

Done in $(($(date +%s) - began)) s. Everything lies in $here/:
  model     as it began; mlx-lm and transformers load it too
  data      train.jsonl, valid.jsonl, test.jsonl; hard: those of step 7
  run       checkpoints, settings and events; for --model it is a model like any other
  lesson    the run of step 8, and half, the checkpoint of it that half knows
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
