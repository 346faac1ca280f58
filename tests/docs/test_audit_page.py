"""The table of sample sizes on the audit's page is computed again."""

import re
from pathlib import Path

from robustly.evaluation import Sampling

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"


def test_the_sizes_of_samples_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 6
    for count, *stated in rows:
        standing = int(count.replace(",", ""))
        assert [Sampling(share).size(standing) for share in (0.02, 0.05, 0.01)] == [int(one) for one in stated]
