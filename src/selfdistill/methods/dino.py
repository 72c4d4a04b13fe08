"""DINO: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294.

    # gs, gt: student and teacher networks; C: centre (K); tps, tpt: temperatures; l, m: momentum rates
    gt.params = gs.params
    for x in loader:
        x1, x2 = augment(x), augment(x)      # global views; local crops go through the student only
        s1, s2 = gs(x1), gs(x2)              # student output, n-by-K
        t1, t2 = gt(x1), gt(x2)              # teacher output, n-by-K
        loss = H(t1, s2)/2 + H(t2, s1)/2
        loss.backward()
        update(gs)                           # AdamW
        gt.params = l*gt.params + (1-l)*gs.params
        C = m*C + (1-m)*cat([t1, t2]).mean(dim=0)

    def H(t, s):
        t = t.detach()
        s = softmax(s / tps, dim=1)
        t = softmax((t - C) / tpt, dim=1)    # centre + sharpen
        return - (t * log(s)).sum(dim=1).mean()

Departures: crops are cut by bilinear interpolation, the code's by bicubic; the teacher's temperature moves every step, not every epoch.
Expected: ViT-S/16 on ImageNet, 300 epochs, multi-crop: 72.8 % kNN, 76.1 % linear top-1 (Table 7); the code's README has 69.3 and 74.0
for 100 epochs of batch 512 with a temperature of 0.04 throughout.
"""

from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import DINOHead
from selfdistill.parts.loss import CrossEntropy, Term
from selfdistill.parts.optim import AdamW, Clip
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.target import Centre
from selfdistill.parts.teacher import EMA
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, Crops, Locals

GLOBAL1 = Augment(scale=(0.4, 1.0), saturation=0.2, blur=1.0)
GLOBAL2 = GLOBAL1.model_copy(update={"blur": 0.1, "solarize": 0.2})
LOCAL = GLOBAL1.model_copy(update={"scale": (0.05, 0.4), "blur": 0.5})

DINO = Recipe(
    method="dino",
    views=Crops(size=224, augment=GLOBAL1, second=GLOBAL2, locals=Locals(count=8, size=96, augment=LOCAL)),
    encoder=Encoder(name="timm:vit_small_patch16_224", options={"drop_path_rate": 0.1}),
    projector=DINOHead(hidden=(2048, 2048), bottleneck=256, out=65536, frozen_epochs=1),
    predictor=None,
    teacher=EMA(tau=Schedule(base=0.996, end=1.0)),
    terms={
        "views": Term(
            loss=CrossEntropy(temperature=0.1, target=Centre(temperature=Schedule(base=0.07, warmup=30, warmup_from=0.04), momentum=0.9)),
            pairs="cross",
        )
    },
    bn_joint=True,
    keep="teacher",
    optimizer=AdamW(),
    lr=Schedule(base=0.0005, end=2.5e-7, warmup=10),  # x batch/256: 0.002 to 1e-6 at 1024
    weight_decay=Schedule(base=0.04, end=0.4),
    decay_norm_and_bias=False,
    clip=Clip(norm=3.0, per="tensor"),
    epochs=100,
    batch_size=1024,
)
