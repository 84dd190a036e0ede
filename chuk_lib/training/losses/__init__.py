"""Losses as pure functions of arrays: no model, no data."""
