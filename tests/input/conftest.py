"""The folder of synthetic runs for tests of bad input."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "reports"))  # for synthetic_run
