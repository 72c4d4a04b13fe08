"""SwAV: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, arXiv 2006.09882.

    # C: prototypes, K-by-D, unit rows
    for x in loader:
        z_v = normalize(g(f(view_v(x))))                  # two global crops, then local ones
        for s in the global crops:
            with no_grad: q_s = sinkhorn(z_s @ C.T / epsilon)             # codes: an equal partition of the batch
            for every other crop v:
                L += -(q_s * log softmax(z_v @ C.T / tau)).sum(1).mean()  # swapped prediction
        update(f, g, C); C = normalize(C)

Expected: ResNet-50 on ImageNet, 800 epochs, batch 4096, 2x224 + 6x96: 75.3 % linear top-1 (README).
"""

from selfdistill.parts.contrast import Swapped
from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import Projector
from selfdistill.parts.loss import Term
from selfdistill.parts.optim import LARS
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.teacher import Shared
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, Crops, Locals

GLOBAL = Augment(scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2, blur=0.5)

SWAV = Recipe(
    method="swav",
    views=Crops(
        size=224,
        augment=GLOBAL,
        locals=Locals(count=6, size=96, augment=GLOBAL.model_copy(update={"scale": (0.05, 0.14)})),
    ),
    encoder=Encoder(name="resnet50", zero_init_residual=False),
    projector=Projector(hidden=(2048,), out=128, bn="hidden"),
    predictor=None,
    teacher=Shared(),
    stop_gradient=True,
    terms={"views": Term(loss=Swapped(prototypes=3000, temperature=0.1, epsilon=0.05), pairs="cross")},
    bn_joint=True,
    optimizer=LARS(momentum=0.9, trust=1e-3),
    lr=Schedule(base=0.3, end=0.0003, warmup=10, warmup_from=0.01875),  # x batch/256: 0.3 to 4.8 to 0.0048 at 4096
    weight_decay=Schedule(base=1e-6),
    epochs=800,
    batch_size=4096,
)
