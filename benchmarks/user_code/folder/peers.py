from pathlib import Path

import numpy as np
import torch
import torchattacks
from PIL import Image
from victim import NAMES, WIDE

files = sorted(Path("photos").glob("*/*.png"))
images = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files]
x = torch.stack(images).float() / 255
y = torch.tensor([NAMES.index(file.parent.name) for file in files])
adversarial = torchattacks.AutoAttack(WIDE, norm="Linf", eps=1 / 255, n_classes=1000)(x, y)
verdict = (WIDE(adversarial).argmax(1) == y).float().mean().item()
