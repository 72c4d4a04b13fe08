"""SimCLR: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, arXiv 2002.05709.

    for x in loader:                                   # N images
        z[2k-1], z[2k] = g(f(t(x_k))), g(f(t'(x_k)))   # t, t' ~ T
        s[i, j] = z[i] . z[j] / (|z[i]| |z[j]|)
        l(i, j) = -log( exp(s[i, j] / tau) / sum over k != i of exp(s[i, k] / tau) )     # eq. 1: 2N - 2 negatives
        L = 1/2N sum over k of l(2k-1, 2k) + l(2k, 2k-1)
        update(f, g)

Expected: ResNet-50 on ImageNet, 1000 epochs, batch 4096: 69.3 % linear top-1 (Table 6); 100 epochs 64.6 (Table B.1).
"""

from selfdistill.parts.contrast import NTXent
from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import Projector
from selfdistill.parts.loss import Term
from selfdistill.parts.optim import LARS
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.teacher import Shared
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, Crops

SIMCLR = Recipe(
    method="simclr",
    views=Crops(
        size=224,
        augment=Augment(scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2, blur=0.5),
    ),
    encoder=Encoder(name="resnet50"),
    projector=Projector(hidden=(2048,), out=128, bn="all", affine=True),  # two layers, 128-d; BN after both in the code
    predictor=None,
    teacher=Shared(),
    stop_gradient=False,
    terms={"views": Term(loss=NTXent(temperature=0.1), pairs="cross")},
    bn_joint=True,  # one batch of 2N views
    optimizer=LARS(momentum=0.9, trust=1e-3),
    lr=Schedule(base=0.3, end=0.0, warmup=10),  # x batch/256: 4.8 at 4096
    weight_decay=Schedule(base=1e-6),
    decay_norm_and_bias=False,
    epochs=1000,
    batch_size=4096,
)
