"""The package `datasets`, without the network."""

import os
from typing import Any

import pytest


@pytest.fixture(scope="session")
def datasets() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at the first import
    return pytest.importorskip("datasets", reason="needs the extra robustly[hf]")
