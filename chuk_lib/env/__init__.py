"""What plays with a model over several turns: tools of other programs, environments, experts."""
