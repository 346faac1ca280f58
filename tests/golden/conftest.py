"""What the comparisons with known values share."""

import pytest
import runs
from comparing import VALUES

from threads import one_thread  # noqa: F401 (used by every test here)


@pytest.fixture(scope="session")
def same_arithmetic() -> bool:
    return runs.fingerprint() == VALUES["fingerprint"]
