"""Embeddings that another program has written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from selfdistill.data.embeddings import read_embeddings, read_labels
from selfdistill.errors import Misuse

Z = np.random.default_rng(0).normal(size=(6, 3))
NAMES = ["cat", "dog", "cat", "ant", "dog", "cat"]
CODES = [1, 2, 1, 0, 2, 1]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_npy(tmp_path, dtype):
    np.save(tmp_path / "z.npy", (10 * Z).astype(dtype))
    np.save(tmp_path / "y.npy", np.array(NAMES))
    z, labels = read_embeddings(tmp_path / "z.npy", tmp_path / "y.npy")
    assert z.dtype == torch.float32
    assert np.array_equal(z.numpy(), (10 * Z).astype(dtype).astype("float32"))
    assert labels.tolist() == CODES
    assert read_embeddings(tmp_path / "z.npy")[1] is None


@pytest.mark.parametrize("column", ["features", "embedding"])
def test_parquet_with_a_list_column(tmp_path, column):
    pq.write_table(pa.table({"path": NAMES, column: Z.tolist(), "label": CODES}), tmp_path / "z.parquet")
    z, labels = read_embeddings(tmp_path / "z.parquet")
    assert np.allclose(z, Z)
    assert labels.tolist() == CODES


def test_parquet_of_other_programs(tmp_path):
    """pandas' index and a number of each image are no dimensions; the only list column is the embedding, whatever its name."""
    dimensions = {f"x{i}": column for i, column in enumerate(Z.T)}
    numbered = {"id": [9, 8, 7, 6, 5, 4], **dimensions, "labels": CODES, "__index_level_0__": [5, 4, 3, 2, 1, 0]}
    for columns in (numbered, {"id": list(range(6)), "vector": Z.tolist(), "class": NAMES}):
        pq.write_table(pa.table(columns), tmp_path / "z.parquet")
        z, labels = read_embeddings(tmp_path / "z.parquet")
        assert np.allclose(z, Z)
        assert labels.tolist() == CODES


def test_columns_of_numbers_come_before_lists_and_a_float_is_no_class(tmp_path):
    dimensions = {f"x{i}": column for i, column in enumerate(Z.T)}
    pq.write_table(pa.table({**dimensions, "box": [[1, 2]] * 6, "target": Z[:, 0]}), tmp_path / "z.parquet")
    z, labels = read_embeddings(tmp_path / "z.parquet")
    assert (z.shape, labels) == ((6, 4), None)


def test_a_null_is_no_label(tmp_path):
    for labels, expected in (([None] * len(Z), None), (["b", None, *["a"] * (len(Z) - 2)], [1, -1, *[0] * (len(Z) - 2)])):
        pq.write_table(pa.table({"features": Z.tolist(), "label": pa.array(labels, pa.string())}), tmp_path / "z.parquet")
        found = read_embeddings(tmp_path / "z.parquet")[1]
        assert (found if found is None else found.tolist()) == expected


def test_parquet_with_a_column_a_dimension(tmp_path):
    pq.write_table(pa.table({"a": Z[:, 0], "name": NAMES, "b": Z[:, 1], "c": Z[:, 2]}), tmp_path / "z.parquet")
    z, labels = read_embeddings(tmp_path / "z.parquet")
    assert np.allclose(z, Z)
    assert labels is None


def test_labels_are_read_from_a_tensor_or_a_file(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "y.npy", np.array(CODES))
    for labels in (torch.tensor(CODES), tmp_path / "y.npy", str(tmp_path / "y.npy")):
        assert read_embeddings(tmp_path / "z.npy", labels)[1].tolist() == CODES
    assert read_labels(torch.tensor([2.0, torch.nan, 1.0, -1.0]), 4).tolist() == [1, -1, 0, -1]
    assert read_labels(torch.tensor([-1, 5, 5, 3, 5, 5]), 6).tolist() == [-1, 1, 1, 0, 1, 1]
    with pytest.raises(Misuse, match=r"labels \[2\] for 6"):
        read_labels(torch.tensor([1, 2]), 6)


def test_rows_that_are_nan_alone_are_left_out_with_their_labels(tmp_path):
    z = Z.copy()
    z[1], z[2, 0] = np.nan, np.nan
    pq.write_table(pa.table({"features": z.tolist(), "label": CODES}), tmp_path / "z.parquet")
    with pytest.warns(UserWarning, match=r"z\.parquet: 1 of 6 rows are NaN"):
        found, labels = read_embeddings(tmp_path / "z.parquet")
    assert np.allclose(found, np.delete(z, 1, 0), equal_nan=True)  # a hole in a row is a run's that diverged
    assert labels.tolist() == [1, 1, 0, 2, 1]
    np.save(tmp_path / "all.npy", np.full((3, 2), np.nan))
    assert len(read_embeddings(tmp_path / "all.npy")[0]) == 3


def test_a_column_of_numbers_may_have_the_name_of_the_lists(tmp_path):
    pq.write_table(pa.table({"features": Z[:, 0], "b": Z[:, 1]}), tmp_path / "z.parquet")
    assert np.allclose(read_embeddings(tmp_path / "z.parquet")[0], Z[:, :2])


def test_a_column_of_tensors(tmp_path):
    pq.write_table(pa.table({"features": pa.FixedShapeTensorArray.from_numpy_ndarray(Z)}), tmp_path / "z.parquet")
    assert np.allclose(read_embeddings(tmp_path / "z.parquet")[0], Z)


def bad(tmp_path):
    np.save(tmp_path / "flat.npy", Z[0])
    np.save(tmp_path / "one.npy", Z[:1])
    np.save(tmp_path / "words.npy", np.array([NAMES, NAMES]))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(tmp_path / "many.npz", a=Z)
    (tmp_path / "many.npz").rename(tmp_path / "many.npy")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "z.csv").write_text("1,2")
    pq.write_table(pa.table({"name": NAMES}), tmp_path / "names.parquet")
    pq.write_table(pa.table({"features": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"features": [[1.0, 2.0], None]}), tmp_path / "hole.parquet")
    pq.write_table(pa.table({"features": Z[:2].tolist(), "label": [[1], [1, 2]]}), tmp_path / "many-labels.parquet")
    pq.write_table(pa.table({"features": [True, False]}), tmp_path / "truths.parquet")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flat.npy", "[N, D]"),
        ("one.npy", "[1, 3]"),
        ("words.npy", "numbers"),
        ("objects.npy", "cannot be read"),
        ("many.npy", "several arrays"),
        ("text.npy", "cannot be read"),
        ("empty.npy", "cannot be read"),
        ("absent.npy", "cannot be read"),
        ("text.parquet", "cannot be read"),
        ("absent.parquet", "cannot be read"),
        ("names.parquet", "no embeddings in columns name"),
        ("ragged.parquet", "different lengths"),
        ("hole.parquet", "different lengths"),
        ("many-labels.parquet", "one label for each image"),
        ("truths.parquet", "no embeddings in columns features"),
        ("z.csv", ".parquet"),
    ],
)
def test_what_is_none_is_refused_with_its_name(tmp_path, name, said):
    bad(tmp_path)
    with pytest.raises(Misuse) as e:
        read_embeddings(tmp_path / name)
    assert name in str(e.value)
    assert said in str(e.value)


def test_labels_for_others(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "y.npy", np.arange(5))
    with pytest.raises(Misuse, match=r"\[5\] for 6"):
        read_embeddings(tmp_path / "z.npy", tmp_path / "y.npy")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(Misuse, match=r"selfdistill\[parquet\]"):
        read_embeddings(tmp_path / "z.parquet")
