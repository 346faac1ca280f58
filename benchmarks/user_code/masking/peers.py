import torch
import torchattacks
from torch.nn.functional import cross_entropy
from victim import MASKED, X, Y


def standing(adversarial):
    return MASKED(adversarial).argmax(1) == Y


fgsm = standing(torchattacks.FGSM(MASKED, eps=0.05)(X, Y))
pgd = standing(torchattacks.PGD(MASKED, eps=0.05, alpha=0.005, steps=50)(X, Y))
square = standing(torchattacks.Square(MASKED, eps=0.05, n_queries=1000)(X, Y))
unbounded = standing(torchattacks.PGD(MASKED, eps=1.0, alpha=0.1, steps=50)(X, Y))
noise = [standing((X + 0.05 * torch.empty_like(X).uniform_(-1, 1)).clamp(0, 1)) for _ in range(20)]
x = X.clone().requires_grad_()
(gradient,) = torch.autograd.grad(cross_entropy(MASKED(x), Y, reduction="sum"), x)
problems = {
    "one step breaks more than fifty": (pgd & ~fgsm).sum() > 2,
    "queries break more than gradients": (pgd & ~square).sum() > 2,
    "no bound, and images stand": unbounded.float().mean() > 0.1,
    "noise breaks more than gradients": (pgd & ~torch.stack(noise).all(0)).sum() > 2,
    "gradients are zero": (gradient.flatten(1).abs().amax(1) < 1e-12).float().mean() > 0.05,
}
verdict = any(bool(found) for found in problems.values())
