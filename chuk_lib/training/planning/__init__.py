"""What a training run needs in time and memory, and settings that fit a budget, without running
it."""
