#!/usr/bin/env bash
# An environment of your own: look at its tools, play by hand, then train a model in it.
#
#     bash examples/12_environment.sh [MODEL]
#
# MODEL is a folder or hub id of a model that calls tools, such as Qwen/Qwen3-0.6B. Without it the game is only played.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

cat > games.py <<'END'
class Guess:
    """The interface is TRL's: `reset` with the columns of a row, public methods as tools, `get_reward` at the end."""

    def reset(self, **row) -> str | None:
        self.secret, self.guesses, self.won = int(row["secret"]), 0, False
        return " It is between 1 and 100."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: What it may be.
        """
        self.guesses += 1
        self.won = int(number) == self.secret
        return "right" if self.won else "it is higher" if int(number) < self.secret else "it is lower"

    def get_reward(self) -> float:
        return float(self.won) - 0.05 * self.guesses
END
for secret in 7 23 42 61 88 95 14 50; do
  echo "{\"prompt\": \"Guess my number.\", \"secret\": $secret}"
done > games.jsonl

chuk env ls games.py
echo "By hand, three guesses:"
printf 'guess number=50\nguess number=25\nguess number=42\n' |
  chuk env play games.py:Guess --row '{"prompt": "Guess my number.", "secret": 42}'

if [ -n "${1:-}" ]; then
  chuk train grpo --model "$1" --data games.jsonl --env games.py:Guess --max-turns 8 --max-completion-length 1024 \
    --lora --max-steps "${STEPS:-50}" --output run
  chuk env play games.py:Guess --model run --row '{"prompt": "Guess my number.", "secret": 42}'
fi
