"""Measuring a model on a data source: answers, rewards of samples, and how far the numbers can be
trusted."""
