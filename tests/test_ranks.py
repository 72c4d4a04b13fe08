"""Two processes train as one does on their batches together: losses, gradients, and what is global over ranks."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfdistill.data.order import micro_batches
from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.parts import collective
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.views.batch import Views
from tests.papers.tiny import LOUD, SIX, build, draw, part, tiny, train, without_bn
from tests.test_papers_masked_and_labelled import IBOT, MEAN_TEACHER, masked_model

RANKS, STEPS = 2, 2
REMEMBERED = {
    "moco": "terms.views.loss.queue",
    "swav": "terms.views.loss.queue",
    "dino": "terms.views.loss.target.centre",
    "simsiam with a memory": "teacher.eta",
    "ibot": "terms.patches.loss.target.centre",
    "byol with least squares": "predictor.W",
    "byol with DirectPred": "predictor.F",
}
"""what is global over ranks, and no parameter"""
VARIANTS = {
    **{method: (method, []) for method in SIX},
    # Full at the second step; and the prototypes move in it.
    "swav": ("swav", ["terms.views.loss.queue=8", "terms.views.loss.queue_from=0", "terms.views.loss.frozen_epochs=0.5"]),
    "swav with a queue that is shared out unevenly": ("swav", ["terms.views.loss.queue=7", "terms.views.loss.queue_from=0"]),
    "moco both ways": ("moco", ["terms.views.pairs=cross", "terms.views.loss.queue=11"]),  # the queue cuts through a step's targets
    "dino": ("dino", ["projector.frozen_epochs=0.5"]),
    "simsiam with a memory": ("simsiam", ["teacher=expectation"]),
    "dino with Sinkhorn": ("dino", ["projector.frozen_epochs=0.5", "terms.views.loss.target=sinkhorn"]),
    "ibot": ("ibot", [*IBOT["loud"], "projector.bottleneck=5", "projector.frozen_epochs=0.5"]),
    "ibot with Sinkhorn": ("ibot", [*IBOT["loud"], "projector.bottleneck=5", "terms.patches.loss.target=sinkhorn"]),
    "mean-teacher": ("mean-teacher", MEAN_TEACHER["loud"]),
    "byol with least squares": ("byol", ["predictor=least-squares"]),
    "byol with DirectPred": ("byol", ["predictor=directpred"]),
}
CASES = [(variant, accumulate) for variant in VARIANTS for accumulate in (1, 2)]


def recipe_of(variant: str, accumulate: int) -> Recipe:
    method, settings = VARIANTS[variant]
    return tiny(method, *LOUD.get(method, []), *without_bn(method), *settings, f"accumulate={accumulate}")


def model_of(recipe: Recipe) -> Siamese:
    return masked_model(recipe) if recipe.views.masks else build(recipe, norm=nn.LayerNorm)


def of_rank(views: Views, rank: int, ranks: int, accumulate: int) -> Views:
    """This rank's share of each micro-batch, as the loader deals them."""
    shares = [part(part(views, micro, accumulate), rank, ranks) for micro in range(accumulate)]
    crops = tuple(torch.cat(size, 1) for size in zip(*(share.crops for share in shares), strict=True))
    masks = None if views.masks is None else torch.cat([share.masks for share in shares], 1)
    labels = None if views.labels is None else torch.cat([share.labels for share in shares])
    return Views(crops, torch.cat([share.ids for share in shares]), masks, labels)


Found = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def trained(recipe: Recipe, rank: int = 0, ranks: int = 1) -> Found:
    """The losses, the last gradients, and all that is there at the end."""
    model = model_of(recipe)
    # A buffer that is broadcast before each step would hide that ranks disagree.
    forward = DistributedDataParallel(model, broadcast_buffers=False) if ranks > 1 else None
    batches = [of_rank(draw(recipe, seed), rank, ranks, recipe.accumulate) for seed in range(STEPS)]
    losses, grads = zip(*train(model, batches, forward), strict=True)
    return torch.stack(losses), grads[-1], {name: tensor.clone() for name, tensor in model.state_dict().items()}


def work(rank: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-point"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    torch.save({case: trained(recipe_of(*case), rank, RANKS) for case in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, int], Found]]:
    """All cases by one pair of processes: they take seconds to start."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(folder,), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def agree(ranks: object, one: object) -> None:
    torch.testing.assert_close(ranks, one, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("variant", "accumulate"), CASES)
def test_ranks_train_as_one_process_with_their_batches_together(of_ranks, variant, accumulate):
    losses, grads, state = trained(recipe_of(variant, accumulate))
    by_rank = [found[variant, accumulate] for found in of_ranks]
    agree(torch.stack([found[0] for found in by_rank]).mean(0), losses)
    for _, its_grads, its_state in by_rank:
        agree(its_grads, grads)
        agree(its_state, state)


@pytest.mark.parametrize("variant", ["moco both ways", "ibot", "mean-teacher"])
def test_micro_batches_are_their_batch(variant):
    """Of the losses that do not compare images of a batch; the other methods' are in test_relations."""
    whole, parts = (trained(recipe_of(variant, accumulate)) for accumulate in (1, 2))
    agree(parts, whole)


def wait_long(rank: int, folder: Path) -> None:
    """The first has more to do than the group would wait for."""
    meeting = f"file://{folder}/meeting-point"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=timedelta(seconds=2))
    with collective.all_wait():
        if rank == 0:
            time.sleep(5)
            (folder / "done").touch()
    (folder / f"{rank} saw {(folder / 'done').exists()}").touch()


def test_the_last_measurement_may_take_longer_than_a_barrier_lasts(tmp_path):
    torch.multiprocessing.spawn(wait_long, args=(tmp_path,), nprocs=RANKS)
    assert {"0 saw True", "1 saw True"} <= {p.name for p in tmp_path.iterdir()}


def test_a_network_with_synchronised_batchnorm_is_the_same_network():
    """timm's BatchNorm holds the activation too, which PyTorch's own conversion leaves out."""
    net = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, keys = net(x), list(net.state_dict())
        made = collective.synchronised(net)
        torch.testing.assert_close(made(x), before)
    assert list(made.state_dict()) == keys
    assert all(isinstance(m, nn.SyncBatchNorm) for m in made.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


@pytest.mark.parametrize(("variant", "buffer"), REMEMBERED.items())
def test_what_is_remembered_moved(variant, buffer):
    """So that the comparison above is of something."""
    recipe = recipe_of(variant, 1)
    before = model_of(recipe).state_dict()[buffer]
    assert (trained(recipe)[2][buffer] - before).abs().max() > 1e-3


@pytest.mark.parametrize(("variant", "what"), [("ibot", "masks"), ("mean-teacher", "labels")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_differ_in_what_is_masked_and_labelled(variant, what, accumulate):
    """And of this: a mean over a rank's masked patches or labelled images would weigh them differently. One rank even has none."""
    recipe = recipe_of(variant, accumulate)
    views = [[of_rank(draw(recipe, seed), rank, RANKS, accumulate) for rank in range(RANKS)] for seed in range(STEPS)]
    masked = [[v.masks.sum((0, 2, 3)) if what == "masks" else (v.labels >= 0).long() for v in of] for of in views]  # by image
    assert any(first.sum() != second.sum() for first, second in masked)
    assert min(int(micro.sum()) for first, _ in masked for micro in first.chunk(accumulate)) == 0


@settings(max_examples=40, deadline=None)
@given(ranks=st.integers(1, 4), accumulate=st.integers(1, 4), share=st.integers(1, 3), step=st.integers(0, 3), seed=st.integers(0, 99))
def test_the_ranks_micro_batches_are_those_of_one_process(ranks, accumulate, share, step, seed):
    """In the order of ranks, from any step on: what is gathered has the order that one process has."""
    size = ranks * accumulate * share
    assume(size > 1)
    recipe = METHODS["simsiam"].edit([f"batch_size={size}", f"accumulate={accumulate}", "epochs=2", f"seed={seed}"])
    images = 2 * size + 1  # two steps an epoch, and one image left over
    whole = list(micro_batches(recipe, images, step))
    assert len(whole) == (4 - step) * accumulate
    dealt = zip(*(micro_batches(recipe, images, step, rank, ranks) for rank in range(ranks)), strict=True)
    for (rounds, micro), by_rank in zip(whole, dealt, strict=True):
        assert torch.equal(torch.cat([its for its, _ in by_rank]), rounds)
        assert [len(its) for _, its in by_rank] == [share] * ranks
        assert torch.equal(torch.cat([its for _, its in by_rank]), micro)


@settings(max_examples=40, deadline=None)
@given(accumulate=st.integers(1, 4), share=st.integers(1, 3), seed=st.integers(0, 99))
def test_micro_batches_are_the_batch_in_parts_and_an_epoch_sees_no_image_twice(accumulate, share, seed):
    size = 2 * accumulate * share
    settings = [f"batch_size={size}", "epochs=2", f"seed={seed}"]
    whole, parts = (METHODS["simsiam"].edit([*settings, f"accumulate={n}"]) for n in (1, accumulate))
    batches, micros = ([(e, ids) for e, ids in micro_batches(recipe, 3 * size + 1, 0)] for recipe in (whole, parts))
    assert len(batches) == 6
    for n, (epoch, batch) in enumerate(batches):
        mine = micros[n * accumulate : (n + 1) * accumulate]
        assert torch.equal(torch.cat([rounds for rounds, _ in mine]), epoch)
        assert torch.equal(torch.cat([ids for _, ids in mine]), batch)
    for epoch in (0, 1):
        seen = torch.cat([ids for rounds, ids in batches if (rounds == epoch).all()])
        assert len(seen.unique()) == 3 * size


@pytest.mark.parametrize(("batch", "accumulate", "ranks"), [(8, 1, 3), (8, 4, 4), (12, 2, 4)])
def test_ranks_that_do_not_share_a_micro_batch_evenly_are_refused(batch, accumulate, ranks):
    """Shares of different sizes would weigh images differently, and what gathers them would hang."""
    recipe = METHODS["simsiam"].edit([f"batch_size={batch}", f"accumulate={accumulate}"])
    with pytest.raises(Misuse, match=f"batch_size={batch}"):
        _ = [next(micro_batches(recipe, 100, 0, rank, ranks)) for rank in range(ranks)]


def test_a_question_that_one_rank_asks_alone_waits_for_no_other(monkeypatch):
    """A probe of Sinkhorn targets on rank 0 would hang in a gather that the other ranks never come to."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert collective.ranks() == (1, 2)
    with collective.alone():
        x = torch.arange(6.0)
        assert collective.ranks() == (0, 1)
        assert collective.of_this_rank(collective.gather(x), 6).equal(x)
    assert collective.ranks() == (1, 2)
