"""SimSiam: Chen & He, Exploring Simple Siamese Representation Learning, arXiv 2011.10566.

    # f: backbone + projection mlp
    # h: prediction mlp
    for x in loader:  # load a minibatch x with n samples
        x1, x2 = aug(x), aug(x)  # random augmentation
        z1, z2 = f(x1), f(x2)  # projections, n-by-d
        p1, p2 = h(z1), h(z2)  # predictions, n-by-d
        L = D(p1, z2)/2 + D(p2, z1)/2  # loss
        L.backward()  # back-propagate
        update(f, h)  # SGD update

    def D(p, z):  # negative cosine similarity
        z = z.detach()  # stop gradient
        p = normalize(p, dim=1)  # l2-normalize
        z = normalize(z, dim=1)  # l2-normalize
        return -(p*z).sum(dim=1).mean()

Expected: ResNet-50 on ImageNet, 100 epochs, batch 512: 68.1 % linear top-1 (Tables 1c and 2); the loss starts near 0 and
falls towards -1 without reaching it.
"""

from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import Projector
from selfdistill.parts.loss import Cosine, Term
from selfdistill.parts.optim import SGD
from selfdistill.parts.predictor import Predictor
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.teacher import Shared
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, Crops

SIMSIAM = Recipe(
    method="simsiam",
    views=Crops(size=224, augment=Augment(scale=(0.2, 1.0), saturation=0.4, blur=0.5)),  # App. A; blur's 0.5 is the code's
    encoder=Encoder(name="resnet50", zero_init_residual=True),
    projector=Projector(hidden=(2048, 2048), out=2048, bn="all", affine=False),  # the last BN without affine: the code, 68.2 in Sec. 4.4
    predictor=Predictor(hidden=(512,), bn="hidden", lr_decay=False),  # Table 1c; the baseline of Sec. 4.3 and after
    teacher=Shared(),
    stop_gradient=True,
    terms={"views": Term(loss=Cosine(), pairs="cross")},
    optimizer=SGD(momentum=0.9),
    lr=Schedule(base=0.05, end=0.0, per_epoch=True),  # x batch/256; cosine, moved once an epoch in the code
    weight_decay=Schedule(base=1e-4),
    decay_norm_and_bias=True,
    epochs=100,
    batch_size=512,
)
