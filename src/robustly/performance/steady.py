"""A network of which no attack breaks an image, so that attacks on it make every pass."""

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import logits_of

_SLOPE = 1e-3


class Steady(nn.Module):
    """A network with a large constant added to its first logit, so that no attack breaks an image of class 0.

    The mean of the image, with a small weight, is added to the logits too: the gradients of networks whose last
    layer is still zero would end some searches at once.
    """

    def __init__(self, model: nn.Module, lead: float) -> None:
        super().__init__()
        self.model, self.lead = model, lead

    def forward(self, x: Tensor) -> Tensor:
        """Logits, `(N, K)`."""
        logits = logits_of(self.model, x)
        classes = torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return logits + self.lead * (classes == 0) + _SLOPE * x.flatten(1).mean(1, keepdim=True) * classes


def steady(model: nn.Module, x: Tensor) -> Steady:
    """The network with a lead of class 0 that is larger than all differences between its logits on a few images."""
    with frozen(model), torch.no_grad():
        logits = logits_of(model, x).nan_to_num(0.0, 0.0, 0.0)
    return Steady(model, 4 * float(logits.max() - logits.min()) + 1)
