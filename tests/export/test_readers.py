"""What `embed` writes, read back by pandas, polars, DuckDB and faiss with the lines of docs/export.md."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import selfdistill as sd
from selfdistill.evaluate.knn import nearest

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
READERS = {m[1]: m[2] for m in re.finditer(r'```python title="not run: (\w+); reads[^\n]*\n(.*?)```', PAGE, re.S)}


def test_the_page_has_the_readers():
    assert READERS.keys() == {"pandas", "polars", "duckdb", "faiss"}


@pytest.mark.parametrize("reader", READERS)
def test_five_nearest_by_each_reader(reader, tiny_run, tiny_source, tmp_path, monkeypatch):
    pytest.importorskip(reader)
    if "parquet" in READERS[reader]:
        pytest.importorskip("pyarrow")
    out = tmp_path / ("stamps.parquet" if "parquet" in READERS[reader] else "stamps.npy")
    assert sd.embed_to(tiny_run, tiny_source, out) == 128
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(READERS[reader], scope)
    features = tiny_run.embed(torch.cat([tiny_source.train.pixels, tiny_source.test.pixels]))
    _, places = nearest(features, features[:1], 5)
    assert np.asarray(scope["near"]).flatten().tolist() == places[0].tolist()
    if "features" in scope:
        assert scope["features"].dtype == np.float32
        np.testing.assert_allclose(scope["features"], features, atol=1e-6)
