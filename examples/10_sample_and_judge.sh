#!/usr/bin/env bash
# Judge a model by rewards: several samples of each prompt, pass@k, and two models side by side.
#
#     bash examples/10_sample_and_judge.sh [MODEL [OTHER]]
#
# MODEL and OTHER are folders, runs or hub ids, and are asked simple arithmetic. Without them a tiny model learns to add
# for a moment, and two of its checkpoints are compared.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat > "$scratch/rewards.py" <<'END'
def brief(completions, **columns):
    """1 for an empty answer, 0 for one of 100 characters."""
    return [1 - min(len(text), 100) / 100 for text in completions]
END

if [ -n "${1:-}" ]; then
  model=$1 other=${2:-} data=$scratch/data right=numeric tokens=64
  chuk data generate-math --types arithmetic --difficulty 1 --samples 400 --output "$data" --quiet > /dev/null
else
  cd "$scratch"
  steps=${STEPS:-350} early=$((${STEPS:-350} * 6 / 7))
  model=run other=run/checkpoints/step_$(printf %06d "$early") data=data right=exact_match tokens=6
  chuk model create --preset micro --output new --quiet > /dev/null
  chuk data generate-math --types addition --difficulty 2 --samples 3000 --reverse-numbers --output "$data" --quiet > /dev/null
  chuk train sft --model new --data "$data" --output "$model" --quiet --max-steps "$steps" --batch-size 64 \
    --learning-rate 5e-3 --lr-scheduler-type constant_with_warmup --warmup-steps 50 --set adam_beta2=0.99 \
    --set checkpoint_interval="$early" > /dev/null
fi

judge() {
  chuk eval --model "$model" --data "$data/test.jsonl" --rows 100 --max-tokens "$tokens" \
    --reward "$right" --reward "$scratch/rewards.py:brief=0.1" --samples 8 --temperature 0.8 "$@"
}

echo "How often is one of k samples right?"
judge --k 1,4,8 --output "$scratch/answers.jsonl"
echo "The first of the answers, as the file has them:"
head -n 2 "$scratch/answers.jsonl"
if [ -n "$other" ]; then
  echo "Is it better than the other one?"
  judge --against "$other"
fi
