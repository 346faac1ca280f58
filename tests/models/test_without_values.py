"""Networks that are built without numbers."""

import torch
from torch import nn

from robustly.models.without_values import without_values


def test_a_network_has_names_and_shapes_but_no_numbers() -> None:
    network = without_values(lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)))
    state = network.state_dict()
    assert state["0.weight"].shape == (5, 3, 3, 3)
    assert "1.running_mean" in state
    assert all(value.is_meta for value in state.values())


def test_weights_are_not_drawn() -> None:
    given = torch.zeros(4, device="cpu")

    def build() -> nn.Module:
        assert nn.init.normal_(given) is given
        assert nn.init.uniform_(tensor=given) is given
        assert nn.init.kaiming_normal_(given.reshape(2, 2)).sum() == 0
        return nn.Linear(4, 2)

    state = torch.get_rng_state()
    without_values(build)
    assert torch.equal(given, torch.zeros(4))
    assert torch.equal(state, torch.get_rng_state())
    assert bool(nn.init.normal_(given).any())  # outside, weights are drawn as ever
