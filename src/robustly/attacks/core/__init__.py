"""Shared code of the attacks: contract, search, ascent, gradients."""
