"""Keys of a configuration, without the types of their values, so that a command line is split without PyTorch."""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]
"""Settings as plain values of YAML."""
SECTIONS = ("data", "model", "optimizer", "schedule", "training", "runtime", "evaluation")
"""Keys with settings of one dataclass each."""
NETWORKS = ("guide", "teacher", "standard_teacher")
"""Keys of the networks beside the model that parts expect under these names."""
UNTRAINED = "evaluation only"
"""Name in place of a recipe, in the settings of a model that was trained elsewhere."""
TOP_LEVEL = ("seed", "threat", *NETWORKS, "networks", "method", *SECTIONS)
