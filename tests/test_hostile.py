"""Input from strangers: mutated recipes, settings and images; code in files; paths that lead out. No traceback, no hang."""

import io
import os
import random
import resource
import stat
import struct
import tarfile
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import selfdistill as sd
from selfdistill.data.folder import open_folder
from selfdistill.data.reading import BadImage, inspect, read_image
from selfdistill.data.shards import open_shards
from selfdistill.data.table import open_table
from selfdistill.methods import METHODS
from selfdistill.recipe import Recipe
from selfdistill.train.resolve import recipe_of

EFFORT = int(os.environ.get("SELFDISTILL_FUZZ", "100"))
"""mutants of each kind; `make soak` sets 1,000"""


def images():
    rng = np.random.default_rng(0)
    for kind, mode in [("png", "RGB"), ("jpeg", "RGB"), ("gif", "P"), ("bmp", "RGB"), ("tiff", "RGB"), ("webp", "RGB"), ("png", "I;16")]:
        wide = mode == "I;16"
        pixels = rng.integers(0, 65535 if wide else 255, (19, 23) if wide else (19, 23, 3), dtype=np.uint16 if wide else np.uint8)
        out = io.BytesIO()
        made = Image.fromarray(pixels)
        (made if wide else made.convert(mode)).save(out, kind)
        yield kind, out.getvalue()


def mutated(content, rng):
    """Bytes changed, cut out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        place = rng.randrange(len(content))
        what = rng.randrange(4)
        if what == 0:
            content[place] = rng.choice((0, 255, 127, rng.randrange(256)))
        elif what == 1:
            content[place : place + 8] = rng.randbytes(8)
        elif what == 2:
            del content[place : place + rng.randrange(1, 9)]
        elif len(content) > 30:
            content = content[: max(20, place)] if rng.random() < 0.3 else content[:place] + content[place : place + 9] + content[place:]
    return bytes(content)


def test_mutated_images_are_read_or_refused(tmp_path):
    rng, whole, outcomes = random.Random(0), list(images()), {"read": 0, "refused": 0}
    for n in range(EFFORT):
        kind, content = whole[n % len(whole)]
        path = tmp_path / f"x.{kind}"
        path.write_bytes(mutated(content, rng))
        started = time.monotonic()
        reason = inspect(path)
        try:
            pixels = np.asarray(read_image(path))
        except BadImage:
            outcomes["refused"] += 1
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            outcomes["read"] += 1
            assert reason is None or kind in ("png", "jpeg")  # which inspection need not decode to the end
        assert time.monotonic() - started < 20
    assert min(outcomes.values()) > EFFORT / 20


def mutated_text(text, rng):
    """Lines moved, lost and doubled; values exchanged; letters changed."""
    rows = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, j, what = rng.randrange(len(rows)), rng.randrange(len(rows)), rng.randrange(5)
        if what == 0 and len(rows) > 2:
            del rows[i]
        elif what == 1:
            rows.insert(i, rows[j])
        elif what == 2:
            rows[i] = rows[i].partition(":")[0] + ":" + rows[j].partition(":")[2]
        elif rows[i]:
            place = rng.randrange(len(rows[i]))
            rows[i] = rows[i][:place] + rng.choice("0123456789-.eE[]{},:#&*!\t xé") + rows[i][place + (what == 3) :]
    return "\n".join(rows)


@pytest.mark.parametrize("read", [Recipe.from_yaml, recipe_of], ids=["a run's", "a user's"])
def test_mutated_recipes_are_read_or_refused(tmp_path, read):
    rng, texts = random.Random(0), [recipe.to_yaml() for recipe in METHODS.values()]
    outcomes = {"read": 0, "refused": 0}
    path = tmp_path / "recipe.yaml"
    for n in range(EFFORT):
        text = texts[n % len(texts)]
        path.write_bytes(mutated(text.encode(), rng) if n % 3 == 0 else mutated_text(text, rng).encode())
        refusal = ""
        try:
            recipe = read(path)
        except sd.Misuse as e:
            refusal = str(e)
        outcomes["refused" if refusal else "read"] += 1
        if refusal:
            assert "recipe.yaml: " in refusal
            assert len(refusal) < 20_000
        else:
            path.write_text(recipe.to_yaml())
            assert Recipe.from_yaml(path) == recipe
    assert min(outcomes.values()) > EFFORT / 20


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))  # noqa: B905


@pytest.mark.parametrize(
    "text",
    [
        "method: !!python/object/apply:os.system ['touch {marker}']",
        "method: !!python/object:selfdistill.errors.Misuse {{}}",
        "!!python/name:os.system",
        BOMB.replace("{", "{{").replace("}", "}}"),
        "[" * 5000,
        "method: 2001-02-31",
        "method: 1__0",
        "method: " + "9" * 5000,
        "method: \0",
        "? {{a: 1}}\n: 2",
        "- a\n- b",
        "",
        "format: x\nmethod: byol",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("read", [Recipe.from_yaml, recipe_of], ids=["a run's", "a user's"])
def test_a_recipe_with_code_or_a_bomb_in_it(tmp_path, text, read):
    path, marker = tmp_path / "recipe.yaml", tmp_path / "executed"
    path.write_text(text.format(marker=marker))
    with pytest.raises(sd.Misuse, match=r"recipe\.yaml") as caught:
        read(path)
    assert len(str(caught.value)) < 10_000
    assert not marker.exists()


# Files and folders that try something.


def test_a_table_leads_to_no_file_outside_its_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    inside, outside = tmp_path / "set" / "a.png", tmp_path / "secret.png"
    inside.parent.mkdir()
    for path in (inside, outside):
        Image.new("RGB", (8, 8)).save(path)
    up = str(tmp_path / "set" / ".." / "secret.png")
    (tmp_path / "set" / "link.png").symlink_to(outside)
    paths = [str(inside), str(outside), up, str(tmp_path / "set" / "link.png"), "/etc/passwd"]
    cells = [{"bytes": None, "path": path} for path in paths]
    table = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    table.to_parquet(tmp_path / "set" / "train.parquet")
    images = open_table(f"hf:{tmp_path / 'set'}").train
    with images.open(0) as photo:
        assert photo.width == 8
    for i in range(1, len(paths)):
        with pytest.raises(BadImage, match="outside the data set"), images.open(i):
            pass


def test_a_data_sets_own_code_is_not_run(tmp_path):
    pytest.importorskip("datasets")
    marker = tmp_path / "executed"
    (tmp_path / "set.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(sd.Failure):
        open_table(f"hf:{tmp_path / 'set.py'}")
    assert not marker.exists()


def test_an_archive_leads_nowhere_else(tmp_path):
    """Members are read by offset: `..`, absolute names and links in it are names or nothing."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../../up.png", "/etc/abs.png", "fine.png"):
            info = tarfile.TarInfo(name)
            info.size = len(out.getvalue())
            tar.addfile(info, io.BytesIO(out.getvalue()))
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    source = open_shards(str(tmp_path / "a.tar"))
    assert len(source.train) + (len(source.test) if source.test else 0) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_misnamed_bombs_and_files_that_may_not_be_read(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.png").read_bytes())  # a PNG called .jpg
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)  # 900 megapixels are promised
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "bomb.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "secret.png").write_bytes((tmp_path / "a.png").read_bytes())
    real = open

    def barred(path, *args, **kw):
        if str(path).endswith("secret.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kw)

    monkeypatch.setattr("builtins.open", barred)  # root, whom tests may run as, reads everything
    source = open_folder(tmp_path)
    assert [p.name for p in source.train.paths] == ["a.png", "b.jpg"]
    reasons = {path.name: reason for path, reason in source.bad}
    assert "decompression bomb" in reasons["bomb.png"]
    assert "regular file" in reasons["pipe.png"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe.png").st_mode)
    assert "Permission denied" in reasons["secret.png"]


def test_memory_stays_flat_over_many_files(tmp_path):
    """Of a flat folder of thousands, which are links to one file: 100,000 take a minute, and grow by the names alone."""
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    for i in range(1, 3_000 if EFFORT < 1_000 else 100_000):
        os.link(tmp_path / f"{i // 30_000 * 30_000}.png", tmp_path / f"{i}.png") if i % 30_000 else Image.new("RGB", (64, 64)).save(
            tmp_path / f"{i}.png"
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = open_folder(tmp_path)
    assert len(source.train) == len(os.listdir(tmp_path))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kB
    assert grown < 20_000 + len(source.train)  # 1 kB a file
