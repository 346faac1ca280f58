"""Experts of a network with threat domains, whose logits are known by hand."""

import torch
from torch import Tensor, nn

from robustly.models.frequency import Route

DIRECTIONS = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1]])


class Experts(nn.Module):
    """An expert for each domain, linear in the pixels along its direction; they are at right angles.

    Args:
        margins: logits of the experts at an image of a single grey.
        grey: the grey.
    """

    def __init__(self, margins: tuple[float, float], grey: float) -> None:
        super().__init__()
        self.margins, self.grey = nn.Parameter(torch.tensor(margins)), grey

    def forward(self, x: Tensor, route: Route) -> Tensor:
        """Logits (margin - movement along the direction, 0)."""
        hard = self._of(x, route.hard)
        if route.soft is None:
            return hard
        soft = self._of(x, route.soft)
        return hard.detach() + (soft - soft.detach())

    def _of(self, x: Tensor, weights: Tensor) -> Tensor:
        moved = (x.flatten(1) - self.grey) @ DIRECTIONS.to(x.dtype).T / 4
        first = (weights * (self.margins - moved)).sum(1)
        return torch.stack([first, torch.zeros_like(first)], 1)
