from math import sqrt
from pathlib import Path

import torchattacks
from victim import MODEL, X, Y


def interval(hits, count, z=1.96):
    share = hits / count
    middle, spread = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return [100 * (middle + sign * spread) / (1 + z * z / count) for sign in (-1, 1)]


attacks = {
    "PGD-50": torchattacks.PGD(MODEL, eps=0.05, alpha=0.005, steps=50),
    "AutoAttack": torchattacks.AutoAttack(MODEL, norm="Linf", eps=0.05, n_classes=10),
}
standing = {"clean": MODEL(X).argmax(1) == Y}
for name, attack in attacks.items():
    standing[name] = MODEL(attack(X, Y)).argmax(1) == Y
standing["worst case"] = standing["PGD-50"] & standing["AutoAttack"]
rows = ""
for name, stands in standing.items():
    hits, count = int(stands.sum()), len(Y)
    low, high = interval(hits, count)
    rows += f"<tr><td>{name}</td><td>{100 * hits / count:.1f} %</td><td>{low:.1f} to {high:.1f}</td></tr>"
head = "<tr><th>attack</th><th>accuracy</th><th>95 % interval</th></tr>"
Path("page.html").write_text(f"<!doctype html><meta charset='utf-8'><table>{head}{rows}</table>")
verdict = standing["worst case"].float().mean().item()
