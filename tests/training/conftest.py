"""Networks as small as those of these tests only lose by threads."""

from collections.abc import Iterator

import pytest
import torch
from training_tools import small_digits

from robustly.data import Splits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def little() -> Splits:
    """150 training, 60 validation and 40 test digits of 16x16 pixels."""
    return small_digits()
