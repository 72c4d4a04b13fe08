"""iBOT: Zhou et al., Image BERT Pre-Training with Online Tokenizer, arXiv 2111.07832.

    # gs, gt: student and teacher, ViT and head; C, C': centres of cls and patch logits (K); m, m': their momenta
    for x in loader:
        u, v = augment(x), augment(x)
        u^, m_u = blockwise_mask(u); v^, m_v = blockwise_mask(v)      # about half of the views stay whole
        us_cls, us_patch = gs(u^); vs_cls, vs_patch = gs(v^)          # the student sees masked views
        ut_cls, ut_patch = gt(u);  vt_cls, vt_patch = gt(v)           # the teacher sees them whole
        L_cls = H(us_cls, vt_cls, C)/2 + H(vs_cls, ut_cls, C)/2       # across views: DINO's loss
        L_mim = (m_u * H(us_patch, ut_patch, C')).sum(1) / m_u.sum(1)/2   # within a view: each image's masked patches
              + (m_v * H(vs_patch, vt_patch, C')).sum(1) / m_v.sum(1)/2
        (L_cls + L_mim.mean()).backward(); update(gs)
        gt = l gt + (1 - l) gs
        C = m C + (1 - m) mean(ut_cls, vt_cls); C' = m' C' + (1 - m') mean(ut_patch, vt_patch)

Expected: ViT-S/16 on ImageNet, 800 epochs, 2x224 + 10x96: 75.2 % kNN, 77.9 % linear top-1 (Table 1).
Departures: the prototypes have unit length (the code's norm_last_layer, which its longest runs turn off); the mask token is not
decayed; and C' is the mean over the masked patches, as in DINOv2, where iBOT's code takes all of them: only masked patches go
through the heads. A patch is masked whatever it shows, so both estimate the same mean. Crops and temperatures as DINO's.
"""

from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import DINOHead
from selfdistill.parts.loss import CrossEntropy, Term
from selfdistill.parts.optim import AdamW, Clip
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.target import Centre
from selfdistill.parts.teacher import EMA
from selfdistill.recipe import Recipe
from selfdistill.views.spec import Augment, BlockMasks, Crops, Locals

GLOBAL1 = Augment(scale=(0.25, 1.0), saturation=0.2, blur=1.0)  # the code's command for ViT-S/16; the paper says 0.32
GLOBAL2 = GLOBAL1.model_copy(update={"blur": 0.1, "solarize": 0.2})
LOCAL = GLOBAL1.model_copy(update={"scale": (0.05, 0.25), "blur": 0.5})
TEACHER_TEMPERATURE = Schedule(base=0.07, warmup=30, warmup_from=0.04)  # both terms

IBOT = Recipe(
    method="ibot",
    views=Crops(
        size=224,
        augment=GLOBAL1,
        second=GLOBAL2,
        locals=Locals(count=10, size=96, augment=LOCAL),
        masks=BlockMasks(patch=16, ratio=(0.1, 0.5), probability=0.5),
    ),
    encoder=Encoder(name="timm:vit_small_patch16_224", options={"drop_path_rate": 0.1}),
    projector=DINOHead(hidden=(2048, 2048), bottleneck=256, out=8192, frozen_epochs=1),
    patch_projector=None,  # shared (Table 17)
    predictor=None,
    teacher=EMA(tau=Schedule(base=0.996, end=1.0)),
    terms={
        "views": Term(loss=CrossEntropy(temperature=0.1, target=Centre(temperature=TEACHER_TEMPERATURE, momentum=0.9)), pairs="cross"),
        "patches": Term(loss=CrossEntropy(temperature=0.1, target=Centre(temperature=TEACHER_TEMPERATURE, momentum=0.9)), on="patch"),
    },
    bn_joint=True,
    keep="teacher",
    optimizer=AdamW(),
    lr=Schedule(base=0.0005, end=2.5e-7, warmup=10),  # x batch/256: 0.002 to 1e-6 at 1024
    weight_decay=Schedule(base=0.04, end=0.4),
    decay_norm_and_bias=False,
    clip=Clip(norm=3.0, per="tensor"),
    epochs=800,
    batch_size=1024,
)
