"""First passes of batch sizes that are new to the process, for which libraries compile or choose code.

oneDNN on a CPU compiles each convolution for each batch size, and cuDNN chooses an algorithm. An attack that
removes broken examples meets many sizes.
"""

import random
from collections.abc import Callable
from statistics import median

from torch import Tensor

from robustly.performance.timing import Meter, Work

TRIED = 5
"""New sizes of a measurement."""


def seconds_of_new_size(pass_of: Callable[[Tensor], Work], x: Tensor, meter: Meter) -> float:
    """Median seconds that the first pass of a batch size takes longer than the second; at least 0.

    The sizes are drawn without a seed: a size that this process has already used would cost nothing.

    Args:
        pass_of: makes a pass of some images.
        x: images, `(N, ...)`; with fewer than 3 there are no other sizes, and the result is 0.
        meter: clock and device.
    """
    sizes = random.sample(range(2, len(x)), min(TRIED, max(len(x) - 2, 0)))
    works = [pass_of(x[:size]) for size in sizes]
    longer = [meter.seconds(work) - meter.seconds(work) for work in works]
    return max(float(median(longer)), 0.0) if longer else 0.0


def expected_new_sizes(steps: float, early: float, broken: float, batches: float) -> float:
    """Number of batch sizes that an attack meets beside those it begins with.

    Each step that breaks an image of a batch makes one. The step of an image has a geometric distribution.

    Args:
        steps: passes of an image that is not broken.
        early: passes of a broken image, as a share of these.
        broken: images that are broken.
        batches: number of batches, which share them evenly.
    """
    if not (broken and batches and steps):
        return 0.0
    share = min(1.0, 1 / max(early * steps, 1.0))
    each = broken / batches
    chances = [share * (1 - share) ** step for step in range(max(round(steps), 1))]
    return float(batches * sum(1 - (1 - chance) ** each for chance in chances))
