from pathlib import Path

import torchattacks
from victim import MODEL, X, Y

sizes = [0.02, 0.05, 0.1, 0.2]
verdict = []
for size in sizes:
    adversarial = torchattacks.PGD(MODEL, eps=size, alpha=size / 4, steps=20)(X, Y)
    verdict.append((MODEL(adversarial).argmax(1) == Y).float().mean().item())
chart = "".join(
    f"<circle cx='{1000 * size:.0f}' cy='{100 - 100 * share:.0f}' r='2'/>"
    for size, share in zip(sizes, verdict, strict=True)
)
Path("curve.svg").write_text(f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 220 110'>{chart}</svg>")
