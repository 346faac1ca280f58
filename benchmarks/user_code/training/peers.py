import copy

import torch
import torchattacks
from torch.nn.functional import cross_entropy
from victim import MODEL, TRAIN_X, TRAIN_Y, X, Y

net = copy.deepcopy(MODEL)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
attack = torchattacks.PGD(net, eps=0.05, alpha=0.0125, steps=10)
for batch in torch.randperm(len(TRAIN_X)).split(128):
    adversarial = attack(TRAIN_X[batch], TRAIN_Y[batch])
    net.train()
    optimizer.zero_grad()
    cross_entropy(net(adversarial), TRAIN_Y[batch]).backward()
    optimizer.step()
net.eval()
torch.save(net.state_dict(), "robust.pt")
adversarial = torchattacks.AutoAttack(net, norm="Linf", eps=0.05, n_classes=10)(X, Y)
verdict = (net(adversarial).argmax(1) == Y).float().mean().item()
