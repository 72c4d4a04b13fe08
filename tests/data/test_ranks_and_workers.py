"""Two processes of two workers each, over shards and a table: every image once an epoch, a resume in the middle; streams are refused."""

import io
import os
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import IterableDataset

import selfdistill as sd
from selfdistill.data.loader import training_views
from selfdistill.data.sources import open_source
from selfdistill.recipe import Recipe

RANKS, IMAGES, MIDDLE = 2, 32, 3
KINDS = ("shards", "table")
STILL = [f"views.augment.{name}=0" for name in ("brightness", "contrast", "saturation", "hue", "grey", "blur")]


def recipe() -> Recipe:
    """Four steps an epoch, the last images of one left over."""
    settings = ["batch_size=8", "epochs=2", "workers=2", "views.size=8", "views.mean=[0.0]", "views.std=[1.0]"]
    return sd.METHODS["simsiam"].edit([*settings, *STILL])


def files() -> list[bytes]:
    """PNGs of one grey level each, 7 i: what a view was cut from can be read off it."""
    made = []
    for i in range(IMAGES + 2):
        buffer = io.BytesIO()
        Image.new("RGB", (12, 10), (7 * i,) * 3).save(buffer, "png")
        made.append(buffer.getvalue())
    return made


def write(kind: str, folder: Path) -> str:
    """The images as three shards, or as a table; returns `data`."""
    folder.mkdir()
    if kind == "table":
        datasets = pytest.importorskip("datasets")
        cells = {"image": [{"bytes": png, "path": None} for png in files()]}
        table = datasets.Dataset.from_dict(cells, features=datasets.Features({"image": datasets.Image()}))
        table.to_parquet(str(folder / "train.parquet"))
        return f"hf:{folder}"
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i, png in list(enumerate(files()))[shard * 12 : shard * 12 + 12]:
                info = tarfile.TarInfo(f"{i:02d}.png")
                info.size = len(png)
                tar.addfile(info, io.BytesIO(png))
    return str(folder)


def seen(data: str, step: int) -> torch.Tensor:
    """[steps, 4] which images this rank gets from `step` on, by their pixels."""
    found = []
    for views in training_views(open_source(data).train, recipe(), step, torch.device("cpu"), print, dist.get_rank(), RANKS):
        levels = views.crops[0] * 255  # [V, B, C, S, S]
        assert levels.std((0, 2, 3, 4)).max() < 1e-3
        assert torch.equal(levels[0, :, 0, 0, 0].div(7).round().long(), views.ids)
        found.append(views.ids)
    return torch.stack(found)


def work(rank: int, folder: Path, sources: dict[str, str]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-point"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    for kind, data in sources.items():
        for step in (0, MIDDLE):
            mine = seen(data, step)
            of_all = [torch.empty_like(mine) for _ in range(RANKS)]
            dist.all_gather(of_all, mine)
            torch.save(torch.stack(of_all), folder / f"{kind}-{step}-{rank}.pt")  # [ranks, steps, 4]
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dealt")
    sources = {kind: write(kind, folder / kind) for kind in KINDS}
    torch.multiprocessing.start_processes(work, (folder, sources), RANKS, start_method="fork")  # spawned, they would spawn their workers
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_once_an_epoch_and_on_from_the_middle(dealt, kind):
    whole, resumed = (torch.load(dealt / f"{kind}-{step}-0.pt") for step in (0, MIDDLE))
    assert whole.shape == (RANKS, 8, 4)
    for epoch in whole.chunk(2, 1):
        assert len(epoch.unique()) == IMAGES  # of 34: two do not fill a batch, others each time
    assert torch.equal(resumed, whole[:, MIDDLE:])
    assert all(torch.equal(torch.load(dealt / f"{kind}-0-1.pt"), of) for of in (whole, torch.load(dealt / f"{KINDS[0]}-0-0.pt")))


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize("data", ["https://host/shards-{000..127}.tar", "s3://bucket/a.tar", "pipe:cat a.tar", "hf://datasets/a/b"])
def test_the_name_of_a_stream_is_refused(data):
    with pytest.raises(sd.Misuse, match=r"is a stream\. Streams are not read: .* data='shards-\{000\.\.127\}\.tar'"):
        open_source(data)


def test_a_stream_is_refused_as_an_object(tmp_path):
    with pytest.raises(sd.Misuse, match=r"data is a .*\.Endless, not a name, a path, .* save_to_disk\(FOLDER\)"):
        sd.pretrain("simsiam", data=Endless(), out=tmp_path / "run")
    datasets = pytest.importorskip("datasets")
    write("table", tmp_path / "set")
    streamed = datasets.load_dataset("parquet", data_files=str(tmp_path / "set" / "train.parquet"), streaming=True)["train"]
    with pytest.raises(sd.Misuse, match="IterableDataset"):
        sd.pretrain("simsiam", data=streamed, out=tmp_path / "run")
    assert os.listdir(tmp_path) == ["set"]
