"""Bounds of a network's output over sets of inputs."""
