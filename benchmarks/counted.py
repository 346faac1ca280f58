"""Counts of the passes through a model, the same for every tool."""

from torch import Tensor, nn


class Passes:
    """Counts that a model shares with its copies."""

    def __init__(self) -> None:
        self.forwards, self.backwards = 0, 0

    def __deepcopy__(self, memo: dict[int, object]) -> "Passes":
        return self

    def back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Counted(nn.Module):
    """A model that counts the images of its forward passes and the gradients of its backward passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, Passes()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        self.passes.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self.passes.back)
        return logits
