"""MoCo v2: Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297 (and 1911.05722, Alg. 1).

    # f_q, f_k: encoder and projector for queries and keys; queue: K keys of earlier batches
    for x in loader:
        q, k = f_q(aug(x)), f_k(aug(x)).detach()          # N-by-C, l2-normalised; no gradient to keys
        l_pos = (q * k).sum(1)                            # N-by-1
        l_neg = q @ queue.T                               # N-by-K
        L = cross_entropy(cat([l_pos, l_neg]) / tau, 0)   # the positive is the 0-th
        update(f_q)                                       # SGD
        f_k = m f_k + (1 - m) f_q
        enqueue(queue, k); dequeue(queue)                 # first in, first out

Expected: ResNet-50 on ImageNet, 200 epochs, batch 256: 67.5 % linear top-1 (Table 1).
Shuffling BN (Sec. 3.3 of 1911.05722) is about several GPUs; SyncBN takes its place here.
"""

from selfdistill.parts.contrast import InfoNCE
from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import Projector
from selfdistill.parts.loss import Term
from selfdistill.parts.optim import SGD
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.teacher import EMA
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, Crops

MOCO = Recipe(
    method="moco",
    views=Crops(size=224, augment=Augment(scale=(0.2, 1.0), saturation=0.4, blur=0.5)),  # aug+
    encoder=Encoder(name="resnet50", zero_init_residual=False),
    projector=Projector(hidden=(2048,), out=128, bn="none"),
    predictor=None,
    teacher=EMA(tau=Schedule(base=0.999)),
    terms={"views": Term(loss=InfoNCE(temperature=0.2, queue=65536), pairs="one-way")},
    optimizer=SGD(momentum=0.9),
    lr=Schedule(base=0.03, end=0.0, per_epoch=True),
    weight_decay=Schedule(base=1e-4),
    epochs=200,
    batch_size=256,
)
