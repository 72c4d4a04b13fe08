"""Mean Teacher: Tarvainen & Valpola, Mean teachers are better role models, arXiv 1703.01780.

    # f: a classifier with weights theta; f': the teacher's, theta'
    for x, y in loader:                                    # y for a few images only
        p, p' = softmax(f(aug(x))), softmax(f'(aug'(x)))
        J = cross_entropy(f(aug(x)), y)  where labelled    # classification cost
          + w(t) |p - p'|^2 / C                            # consistency cost of C classes, ramped up by exp(-5 (1 - t)^2)
        update(f)
        theta' = alpha theta' + (1 - alpha) theta          # 0.99 while ramping up, 0.999 after

Semi-supervised: `labels` says how many images keep their label. Without them it is BYOL without its predictor, and collapses
(BYOL Table 5b: 0.2). Expected: CIFAR-10 with 4,000 labels, ResNet: test error 6.28 % (README of the code).
Departure: alpha is 0.99 from the first step, where the code takes min(1 - 1/(step + 1), alpha).
"""

from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import Projector
from selfdistill.parts.loss import Consistency, Labels, Term
from selfdistill.parts.optim import SGD
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.teacher import EMA
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, Crops

MEAN_TEACHER = Recipe(
    method="mean-teacher",
    views=Crops(size=224, augment=Augment(scale=(0.08, 1.0), jitter=0.8, grey=0.0, blur=0.0)),
    encoder=Encoder(name="resnet50"),
    projector=Projector(hidden=(), out=1000, bn="none"),  # the classifier; out is set to the data's number of classes
    predictor=None,
    teacher=EMA(tau=Schedule(base=0.99, until=5, then=Schedule(base=0.999))),
    terms={
        "labels": Term(loss=Labels()),
        "consistency": Term(loss=Consistency(), pairs="cross", weight=Schedule(base=100.0, warmup=5, warmup_shape="sigmoid")),
    },
    labels=0.1,  # of the images: the paper's ImageNet experiment
    labelled_share=31 / 128,  # of a batch: the CIFAR-10 ResNet experiment
    keep="teacher",
    optimizer=SGD(momentum=0.9, nesterov=True),
    lr=Schedule(base=0.1, end=0.0),
    weight_decay=Schedule(base=2e-4),
    epochs=300,
    batch_size=512,
)
