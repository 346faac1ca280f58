"""Experiments: typed settings, run folders, sweeps."""
