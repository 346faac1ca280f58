"""What the comparisons with known values share."""

from collections.abc import Iterator

import pytest
import runs
import torch
from comparing import VALUES


@pytest.fixture(scope="session")
def same_arithmetic() -> bool:
    return runs.fingerprint() == VALUES["fingerprint"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
