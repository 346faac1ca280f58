"""Shared machinery of the attacks: contract, search, ascent, gradients."""
