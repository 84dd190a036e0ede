"""Merge models and adapters: the formulas, what a merge is told, the models that go in, the folder
that comes out."""
