import pytest
from synthetic_run import Synthetic, write_synthetic_run


@pytest.fixture
def run(tmp_path):
    """A small run with everything in it."""
    return write_synthetic_run(tmp_path / "runs", Synthetic(count=200, epochs=6))
