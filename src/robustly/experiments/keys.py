"""Keys of a configuration, without the types of their values, so that a command line is split without PyTorch."""

from collections.abc import Collection, Mapping
from typing import Any

from robustly.settings import SettingsError

Settings = Mapping[str, Any]
"""Settings as plain values of YAML."""
SECTIONS = ("data", "model", "optimizer", "schedule", "training", "runtime", "evaluation")
"""Keys with settings of one dataclass each."""
NETWORKS = ("guide", "teacher", "standard_teacher")
"""Keys of the networks beside the model that parts expect under these names."""
UNTRAINED = "evaluation only"
"""Name in place of a recipe, in the settings of a model that was trained elsewhere."""
TOP_LEVEL = ("seed", "threat", *NETWORKS, "networks", "method", *SECTIONS)
"""Keys of a complete configuration with one threat."""
ALLOWED = (*TOP_LEVEL, "threats")
"""Keys that a configuration may have; it has "threat" or "threats"."""


def refuse_both_threats(settings: Collection[str], where: str) -> None:
    """Refuse settings with both `threat` and `threats`.

    Args:
        settings: keys.
        where: their place, for the message.

    Raises:
        SettingsError: both are there.
    """
    if "threat" in settings and "threats" in settings:
        raise SettingsError(f"{where}: give threat (one) or threats (a list), not both")
