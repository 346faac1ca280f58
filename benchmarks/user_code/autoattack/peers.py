import torchattacks
from victim import MODEL, X, Y

adversarial = torchattacks.AutoAttack(MODEL, norm="Linf", eps=0.05, n_classes=10)(X, Y)
verdict = (MODEL(adversarial).argmax(1) == Y).float().mean().item()
