"""Learning from what the model itself writes: GRPO, PPO and all they share."""
