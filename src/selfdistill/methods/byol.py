"""BYOL: Grill et al., Bootstrap Your Own Latent, arXiv 2006.07733.

    # f, g, q: encoder, projector, predictor with weights theta; f', g': the target's, with weights xi
    for k, x in enumerate(loader, 1):
        v, w = t(x), u(x)                        # t ~ T, u ~ T': two distributions of augmentations (Table 6)
        L = D(q(g(f(v))), g'(f'(w))) + D(q(g(f(w))), g'(f'(v)))
        theta = LARS(theta, dL/dtheta)           # no gradient to xi
        tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2
        xi = tau xi + (1 - tau) theta

    def D(p, z):                                 # eq. 2
        return |p/|p| - z/|z||^2 = 2 - 2 cos(p, z)

Expected: ResNet-50 on ImageNet, 1000 epochs, batch 4096: 74.3 % linear top-1 (Table 1); 300 epochs 72.5 % (Table 5).
"""

from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import Projector
from selfdistill.parts.loss import MSE, Term
from selfdistill.parts.optim import LARS
from selfdistill.parts.predictor import Predictor
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.teacher import EMA
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, Crops

T1 = Augment(scale=(0.08, 1.0), saturation=0.2, blur=1.0, solarize=0.0)  # Table 6, T
T2 = T1.model_copy(update={"blur": 0.1, "solarize": 0.2})  # Table 6, T'

BYOL = Recipe(
    method="byol",
    views=Crops(size=224, augment=T1, second=T2),
    encoder=Encoder(name="resnet50", zero_init_residual=True),  # as in haiku's ResNet, which the code uses
    projector=Projector(hidden=(4096,), out=256, bn="hidden", bias=False),
    predictor=Predictor(hidden=(4096,), bn="hidden", bias=False),
    teacher=EMA(tau=Schedule(base=0.996, end=1.0)),
    stop_gradient=True,
    terms={"views": Term(loss=MSE(), pairs="cross", weight=2.0)},  # a Term averages over pairs; BYOL adds the two directions
    optimizer=LARS(momentum=0.9, trust=1e-3),
    lr=Schedule(base=0.2, end=0.0, warmup=10),
    weight_decay=Schedule(base=1.5e-6),
    decay_norm_and_bias=False,
    epochs=1000,
    batch_size=4096,
)
