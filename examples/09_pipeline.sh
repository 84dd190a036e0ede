#!/usr/bin/env bash
# Stages in one go: supervised fine-tuning, DPO on pairs, GRPO on a reward, and what became of it.
#
#     bash examples/09_pipeline.sh [MODEL [OUTPUT]]
#
# MODEL is a folder, a run or a hub id; without it a tiny one is made, and OUTPUT is runs/pipeline. Interrupted, the same
# command goes on where it was. With a folder that has one folder a stage, each stage takes its own data.
set -euo pipefail
output=${2:-runs/pipeline}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

model=${1:-$scratch/model}
[ -n "${1:-}" ] || chuk model create --preset micro --output "$model" --quiet > /dev/null
for stage in sft grpo eval; do
  chuk data generate-math --types addition --difficulty 2 --samples "${SAMPLES:-3000}" --reverse-numbers \
    --output "$scratch/data/$stage" --quiet > /dev/null
done
chuk data generate-math --types addition --difficulty 2 --samples "${SAMPLES:-3000}" --reverse-numbers \
  --format preference --output "$scratch/data/dpo" --quiet > /dev/null

chuk train pipeline --stages sft,dpo,grpo,eval --model "$model" --data "$scratch/data" --output "$output" \
  --batch-size 64 --warmup-steps 50 --set adam_beta2=0.99 \
  --set sft.max_steps="${STEPS:-350}" --set sft.learning_rate=5e-3 --set sft.lr_scheduler_type=constant_with_warmup \
  --set dpo.max_steps="${STEPS:-20}" --set dpo.learning_rate=2e-3 --set dpo.beta=0.5 \
  --set grpo.max_steps="${STEPS:-20}" --set grpo.learning_rate=2e-3 --set grpo.rewards=exact_match \
  --set grpo.max_completion_length=6 --set grpo.log_interval=10
chuk runs show "$output/03-grpo" --completions --limit 4
