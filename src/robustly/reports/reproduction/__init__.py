"""Outcome of a reproduction: controls, guides, determinism, order of the methods, and the verdict."""
