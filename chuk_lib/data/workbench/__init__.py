"""Work on rows before training: check, count, convert, split, thin out, mix, cut. Everything
streams."""
