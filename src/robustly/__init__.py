"""Train robust networks, attack them honestly, and show the evidence."""

__version__ = "0.1.0"
