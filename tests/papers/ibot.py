"""iBOT, executable. Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022, arXiv 2111.07832, Algorithm 1,
"w/o multi-crop augmentation":

    # gs, gt: student and teacher network
    # C, C': center on [CLS] token and patch tokens
    # tps, tpt: temperature on [CLS] token for student and teacher
    # tps', tpt': temperature on patch tokens for student and teacher
    # l: momentum rate for network; m, m': momentum rates for center on [CLS] token and patch tokens
    gt.params = gs.params
    for x in loader:  # load a minibatch x with n samples
        u, v = augment(x), augment(x)  # random views
        u^, m_u = blockwise_mask(u)  # random block-wise masking
        v^, m_v = blockwise_mask(v)
        us^_cls, us^_patch = gs(u^, return_all_tok=true)  # [n, K], [n, S^2, K]
        vs^_cls, vs^_patch = gs(v^, return_all_tok=true)
        ut_cls, ut_patch = gt(u, return_all_tok=true)
        vt_cls, vt_patch = gt(v, return_all_tok=true)
        L_cls = H(us^_cls, vt_cls, C, tps, tpt)/2 + H(vs^_cls, ut_cls, C, tps, tpt)/2
        L_mim = (m_u * H(us^_patch, ut_patch, C', tps', tpt').sum(dim=1) / m_u.sum(dim=1)/2
              + (m_v * H(vs^_patch, vt_patch, C', tps', tpt').sum(dim=1) / m_v.sum(dim=1)/2
        (L_cls.mean() + L_mim.mean()).backward()
        update(gs)
        gt.params = l*gt.params + (1-l)*gs.params
        C = m*C + (1-m)*cat([ut_cls, vt_cls]).mean(dim=0)
        C' = m'*C' + (1-m')*cat([ut_patch, vt_patch]).mean(dim=(0, 1))

    def H(s, t, c, tps, tpt):
        t = t.detach()  # stop gradient
        s = softmax(s / tps, dim=-1)
        t = softmax((t - c) / tpt, dim=-1)  # center + sharpen
        return - (t * log(s)).sum(dim=-1)

The masks m are 1 at the patches hidden from the student, whose embedding (before the position's) gives way to a learnt one. From the
code: a view may have no mask and then counts 0, by max(m.sum, 1); with multi-crop, L_cls is the mean over both teacher views and all other
views of the student, the local ones whole. One head for [CLS] and patches. The rest is DINO's: head, AdamW, clipping, schedules, frozen
prototypes, no decay for biases and 1-D parameters.
Unlike that code, C' is the mean over the masked patches only (DINOv2), and stays where no patch is masked; the learnt embedding is 1-D,
so it does not decay; the schedules' clocks are those of dino.py.

Written from the paper, knows nothing of the package: weights and views come from outside, everything else is here.
"""

from typing import NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.func import functional_call

from tests.papers.dino import adamw, clipped, gelu

Named = dict[str, Tensor]


class State(NamedTuple):
    """By name: f.* of timm's ViT, mask the embedding of a hidden patch, g.fc1 g.fc2 g.fc3 of the head, g.last.weight its prototypes."""

    student: Named
    teacher: Named
    C_cls: Tensor
    C_patch: Tensor
    moments: dict[str, tuple[Tensor, Tensor, int]]  # AdamW's: first, second, and how many steps made them


class Now(NamedTuple):
    """What the schedules say of this step, and whether it leaves the prototypes alone."""

    lr: float
    weight_decay: float
    tpt_cls: float
    tpt_patch: float
    l: float  # noqa: E741
    frozen: bool


class Fixed(NamedTuple):
    """What no schedule moves."""

    tps_cls: float = 0.1
    tps_patch: float = 0.1
    m_cls: float = 0.9
    m_patch: float = 0.9
    clip: float = 3.0


def step(
    vit: nn.Module, state: State, whole: list[Tensor], masks: list[Tensor], local: list[Tensor], now: Now, fixed: Fixed
) -> tuple[Tensor, Named, State]:
    """One pass of the loop on two global views, their masks and some local views: the loss, its gradients before clipping, and the
    state afterwards."""
    w = {name: value.detach().requires_grad_() for name, value in state.student.items()}
    s = [gs(vit, w, view, mask) for view, mask in zip(whole, masks, strict=True)] + [gs(vit, w, view, None) for view in local]
    with torch.no_grad():
        t = [gs(vit, state.teacher, view, None) for view in whole]

    L_cls, compared = torch.zeros((), dtype=torch.float64), 0
    for j, (t_cls, _) in enumerate(t):
        for i, (s_cls, _) in enumerate(s):
            if i != j:
                L_cls, compared = L_cls + H(s_cls, t_cls, state.C_cls, fixed.tps_cls, now.tpt_cls).mean(), compared + 1
    L_mim = torch.zeros((), dtype=torch.float64)
    for (_, s_patch), (_, t_patch), mask in zip(s, t, masks, strict=False):
        m = mask.flatten(1).double()  # [n, S^2]
        of_each = (m * H(s_patch, t_patch, state.C_patch, fixed.tps_patch, now.tpt_patch)).sum(dim=1) / m.sum(dim=1).clamp(min=1)
        L_mim = L_mim + of_each.mean() / 2
    loss = L_cls / compared + L_mim
    grads = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))

    w, moments = {n: p.detach() for n, p in w.items()}, dict(state.moments)
    for n in w:
        if not (now.frozen and n == "g.last.weight"):
            decay = 0.0 if w[n].ndim == 1 else now.weight_decay
            w[n], moments[n] = adamw(w[n], clipped(grads[n], fixed.clip), moments[n], now.lr, decay)
    teacher = {n: now.l * state.teacher[n] + (1 - now.l) * w[n] for n in w}
    C_cls = fixed.m_cls * state.C_cls + (1 - fixed.m_cls) * torch.cat([cls for cls, _ in t]).mean(dim=0)
    C_patch, hidden = state.C_patch, [patch[mask.flatten(1)] for (_, patch), mask in zip(t, masks, strict=True)]
    if sum(len(rows) for rows in hidden):
        C_patch = fixed.m_patch * C_patch + (1 - fixed.m_patch) * torch.cat(hidden).mean(dim=0)
    return loss.detach(), grads, State(w, teacher, C_cls, C_patch, moments)


def gs(vit: nn.Module, p: Named, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """[n, K] of the [CLS] token and [n, S^2, K] of the patch tokens, where the ViT and its head have the parameters p."""

    def part(name: str, x: Tensor) -> Tensor:
        prefix = f"f.{name}."
        mine = {n.removeprefix(prefix): w for n, w in p.items() if n.startswith(prefix)}
        return functional_call(vit.get_submodule(name), mine, x)

    h = part("patch_embed", x)  # [n, S, S, F]
    n, S = h.shape[:2]
    if mask is not None:
        m = mask[..., None].to(h.dtype)
        h = (1 - m) * h + m * p["mask"]
    h = torch.cat([p["f.cls_token"].expand(n, 1, -1), h.flatten(1, 2)], dim=1)  # [n, 1 + S^2, F]
    h = h + resample_abs_pos_embed(p["f.pos_embed"], (S, S), num_prefix_tokens=1)
    for i in range(len(vit.blocks)):
        h = part(f"blocks.{i}", h)
    h = part("norm", h)
    z = head(p, h)
    return z[:, 0], z[:, 1:]


def head(p: Named, x: Tensor) -> Tensor:
    def fc(x: Tensor, name: str) -> Tensor:
        return x @ p[f"g.{name}.weight"].T + p[f"g.{name}.bias"]

    x = fc(gelu(fc(gelu(fc(x, "fc1")), "fc2")), "fc3")
    x = x / x.norm(dim=-1, keepdim=True)
    v = p["g.last.weight"]
    return x @ (v / v.norm(dim=1, keepdim=True)).T


def H(s: Tensor, t: Tensor, c: Tensor, tps: float, tpt: float) -> Tensor:
    t = t.detach()  # stop gradient
    s = torch.softmax(s / tps, dim=-1)
    t = torch.softmax((t - c) / tpt, dim=-1)  # center + sharpen
    return -(t * s.log()).sum(dim=-1)
