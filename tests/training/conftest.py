"""Networks as small as those of these tests only lose by threads."""

import pytest
from training_tools import small_digits

from robustly.data import Splits
from threads import one_thread  # noqa: F401 (used by every test here)


@pytest.fixture(scope="session")
def little() -> Splits:
    """150 training, 60 validation and 40 test digits of 16x16 pixels."""
    return small_digits()
