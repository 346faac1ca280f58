"""Model, images and folder of all tasks: the reader has them already, so that they are not counted."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from robustly.data import DataConfig, load_splits

SPLITS = load_splits(DataConfig(source="mnist5k"))
TRAIN_X, TRAIN_Y = SPLITS.train.images.float() / 255, SPLITS.train.labels
X, Y = SPLITS.test.images[:40].float() / 255, SPLITS.test.labels[:40]
NAMES = tuple(f"kind {place}" for place in range(1000))


def make_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=3, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def trained() -> nn.Module:
    """A network without any defence; its weights are also in net.pt."""
    torch.manual_seed(0)
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(6):
        for batch in torch.randperm(len(TRAIN_X)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(TRAIN_X[batch]), TRAIN_Y[batch]).backward()
            optimizer.step()
    torch.save(net.state_dict(), "net.pt")
    return net.eval()


class Steps(nn.Module):
    """Inputs in steps of 0.02, whose gradient is zero: a defence that only masks the gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 50).round() / 50


def wide() -> nn.Module:
    """A network with 1,000 outputs, and `photos`: a folder with three of its classes, twelve images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 1000)).eval()
    for number in (7, 250, 900):
        folder = Path("photos", NAMES[number])
        folder.mkdir(parents=True, exist_ok=True)
        for place in range(4):
            image = (torch.rand(3, 8, 8) * 255).byte()
            with torch.no_grad():
                logits = net(image[None] / 255)[0]
                net[1].weight[number] += (0.2 + logits.max() - logits[number]) * image.flatten() / 255 / 20
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
    return net


MODEL = trained()
MASKED = nn.Sequential(Steps(), MODEL)
WIDE = wide()
