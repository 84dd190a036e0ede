"""What losses and algorithms compute with: log-probs in tiles, advantages, GAE, KL, gradient
norms."""
