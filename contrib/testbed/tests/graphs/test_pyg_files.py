"""That nothing a file says is run, downloaded or written."""

from __future__ import annotations

import inspect
import pickle
import re
import socket

import numpy as np
import pytest
import scipy.sparse
import torch
import torch_geometric.datasets
from torch_geometric.data import Data
from torch_geometric.io import fs

import graftwork_testbed.graphs.pyg_files as module
from graftwork import DataError
from graftwork_testbed.graphs import pyg_dataset
from graftwork_testbed.graphs.pyg_files import PROCESSED, RAW, locate

CORA = {"name": "Cora"}

SETTINGS = {
    "Airports": {"name": "USA"},
    "Amazon": {"name": "Photo"},
    "CitationFull": {"name": "Cora"},
    "Coauthor": {"name": "CS"},
    "GNNBenchmarkDataset": {"name": "MNIST"},
    "HGBDataset": {"name": "ACM"},
    "HeterophilousGraphDataset": {"name": "Roman-empire"},
    "LINKXDataset": {"name": "penn94"},
    "LRGBDataset": {"name": "PascalVOC-SP"},
    "MoleculeNet": {"name": "BACE"},
    "Planetoid": {"name": "Cora"},
    "TUDataset": {"name": "MUTAG"},
    "Twitch": {"name": "DE"},
    "UPFD": {"name": "politifact", "feature": "bert"},
    "WebKB": {"name": "Cornell"},
    "WikipediaNetwork": {"name": "chameleon"},
}


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_trap_in_the_processed_file_is_refused_and_not_sprung(cora, trap):
    torch.save(({"x": torch.zeros(2), "meta": trap}, None, Data), cora / "Cora" / "processed" / "data.pt")
    with pytest.raises(DataError, match=r"holds more than tensors, .* and could run code, so it is not loaded.*trust what it fetches"):
        pyg_dataset(str(cora), "Planetoid", CORA)
    assert not trap.marker.exists()


def test_pyg_itself_would_spring_it(cora, trap):
    """The control: the file is a live trap, and PyG's loader falls back to loading it without restriction."""
    path = cora / "Cora" / "processed" / "data.pt"
    torch.save(({"x": torch.zeros(2), "meta": trap}, None, Data), path)
    with pytest.warns(UserWarning, match="Weights only load failed"):
        fs.torch_load(str(path))
    assert trap.marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_in_its_place_is_not_sprung(cora, trap, protocol):
    (cora / "Cora" / "processed" / "data.pt").write_bytes(pickle.dumps(trap, protocol))
    with pytest.raises(DataError, match=r"data\.pt"):
        pyg_dataset(str(cora), "Planetoid", CORA)
    assert not trap.marker.exists()


def test_traps_beside_a_good_file_are_never_opened(cora, trap):
    """PyG unpickles these whenever they are there."""
    for name in ("pre_transform.pt", "pre_filter.pt"):
        torch.save(trap, cora / "Cora" / "processed" / name)
    assert len(pyg_dataset(str(cora), "Planetoid", CORA)["train"][0]["nodes"]) == 20
    assert not trap.marker.exists()


def test_raw_files_that_are_pickles_are_never_opened(tmp_path, trap):
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for name in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"):
        (raw / f"ind.cora.{name}").write_bytes(pickle.dumps(trap))
    with pytest.raises(DataError, match=r"processed lacks data\.pt\. Nothing is downloaded: .*Planetoid\(\"FOLDER\", name='Cora'\)"):
        pyg_dataset(str(tmp_path), "Planetoid", CORA)
    assert not trap.marker.exists()


@pytest.mark.parametrize("name", RAW)
def test_traps_in_raw_files_are_not_sprung(tmp_path, trap, name):
    """Every raw file replaced by a trap: a pickle under its own name, an array of objects in .npz and .npy."""
    files = locate(str(tmp_path), name, SETTINGS.get(name, {}))
    for path in files.raw:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.array([trap], dtype=object)
        if path.suffix == ".npz":
            keys = ("data", "indices", "indptr", "shape", "format", "adj_data", "attr_data", "train_mask", "node_features", "train_idx")
            np.savez(path, **dict.fromkeys(keys, array), allow_pickle=True)
        elif path.suffix == ".npy":
            np.save(path, array, allow_pickle=True)
        else:
            path.write_bytes(pickle.dumps(trap))
    before = files_of(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        pyg_dataset(str(tmp_path), name, SETTINGS.get(name, {}))
    assert not trap.marker.exists()
    assert files_of(tmp_path) == before


def test_sparse_matrices_of_objects_are_not_sprung(dblp, trap):
    scipy.sparse.save_npz(dblp / "raw" / "features_0.npz", scipy.sparse.csr_matrix(np.ones((12, 6))))
    good = dict(np.load(dblp / "raw" / "features_0.npz"))
    np.savez(dblp / "raw" / "features_0.npz", **good | {"data": np.array([trap], dtype=object)}, allow_pickle=True)
    with pytest.raises(DataError, match=r"raw files in .* cannot be read: .*allow_pickle=False"):
        pyg_dataset(str(dblp), "DBLP")
    assert not trap.marker.exists()


@pytest.mark.parametrize("name", [*RAW, *PROCESSED])
def test_asking_where_files_are_touches_neither_disk_nor_network(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(DataError, match=f"{name} has no files here: .* lacks .*Nothing is downloaded: on a machine with a network"):
        pyg_dataset(str(tmp_path), name, SETTINGS.get(name, {}))
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("name", [*RAW, *PROCESSED])
def test_paths_are_those_of_the_class(tmp_path, name):
    """The class's own idea of its folders, taken from an object that its constructor never finished."""
    files = locate(str(tmp_path), name, SETTINGS.get(name, {}))
    assert isinstance(files.source, getattr(torch_geometric.datasets, name))
    assert [str(path) for path in files.processed] == list(files.source.processed_paths)
    assert all(path.is_relative_to(tmp_path) for path in (*files.raw, *files.processed))


@pytest.mark.parametrize("name", [*RAW, *PROCESSED])
def test_classes_do_nothing_after_loading_that_is_not_done_here(name):
    """What stands after `super().__init__` in their constructors; TUDataset's columns and Planetoid's splits are dealt with."""
    kind = getattr(torch_geometric.datasets, name)
    body = inspect.getsource(kind.__init__).rpartition("super().__init__(")[2].partition(")\n")[2]
    words = set(re.findall(r"[a-zA-Z_]+(?=\()", body))
    if name in ("TUDataset", "Planetoid"):
        assert "load" in words or "torch_load" in words
    else:
        assert words <= {"load", "join", "index", "isinstance", "ValueError"}


@pytest.mark.parametrize("name", RAW)
def test_raw_readers_call_no_unpickler(name):
    """The `process` of the installed PyG, and what it hands the reading to."""
    source = inspect.getsource(getattr(torch_geometric.datasets, name).process)
    assert not re.search(r"pickle|torch\.load|torch_load|joblib|loadmat|read_planetoid", source)
    for reader in (torch_geometric.io.read_npz, torch_geometric.io.read_tu_data, torch_geometric.io.read_txt_array):
        assert not re.search(r"pickle|torch\.load|torch_load", inspect.getsource(reader))


def test_settings_cannot_lead_out_of_the_folder(tmp_path):
    for name in ("TUDataset", "Planetoid"):
        with pytest.raises(DataError, match=r"lead out of .*, to "):
            locate(str(tmp_path / "a" / "b"), name, {"name": "../../elsewhere"})


def test_old_torch_reads_no_processed_file(cora, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(DataError, match=r"on torch 2\.6 or later only, because of CVE-2025-32434; this is 2\.5\.1"):
        pyg_dataset(str(cora), "Planetoid", CORA)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Planetoid", {"nmae": "Cora"}, "Planetoid takes no setting nmae; it takes name, split"),
        ("Planetoid", {"name": "Cora", "transform": "x"}, "takes no setting transform"),
        ("Planetoid", {"name": "Cora", "force_reload": True}, "takes no setting force_reload"),
        ("Planetoid", {"name": "Cora", "split": "mine"}, "Planetoid refuses the settings"),
        ("Planetoid", {}, "Planetoid refuses the settings {}: .*name"),
        ("Planetoid", {"name": 3}, "Planetoid finds no files with the settings {'name': 3}"),
        ("TUDataset", {"name": 3}, "TUDataset finds no files with the settings {'name': 3}"),
        ("WebKB", {"name": "Harvard"}, "WebKB refuses the settings"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, name, settings, message):
    with pytest.raises(ValueError, match=message):
        locate(str(tmp_path), name, settings)


def test_classes_that_are_not_read_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r'"Planetiod" is not among .* \(did you mean "Planetoid"\?\): AQSOL, Actor'):
        locate(str(tmp_path), "Planetiod", {})
    monkeypatch.setattr(module, "RAW", (*RAW, "Renamed"))
    with pytest.raises(DataError, match="the installed torch_geometric has no Renamed; upgrade it"):
        locate(str(tmp_path), "Renamed", {})
    monkeypatch.setattr(module, "RAW", (*RAW, "FakeDataset"))
    with pytest.raises(ValueError, match="FakeDataset finds no files"):
        locate(str(tmp_path), "FakeDataset", {})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.zeros(3), "does not hold what PyG 2.4 or later writes"),
        (({"x": torch.zeros(2, 1)}, None), "does not hold what PyG 2.4 or later writes"),
        (({"x": torch.zeros(2, 1)}, None, dict), "does not hold what PyG 2.4 or later writes"),
        (([1, 2], {"x": torch.tensor([0, 1])}, Data), "holds no graphs"),
        (({"x": torch.zeros(2, 1), "edge_index": torch.tensor([[0], [5]]), "y": torch.zeros(2)}, None, Data), "not valid"),
    ],
)
def test_files_of_another_form_are_named(cora, found, message):
    torch.save(found, cora / "Cora" / "processed" / "data.pt")
    with pytest.raises(DataError, match=message):
        pyg_dataset(str(cora), "Planetoid", CORA)


@pytest.mark.parametrize("content", [b"", b"nothing like it", b"PK\x03\x04broken"])
def test_damaged_files_are_named(cora, content):
    (cora / "Cora" / "processed" / "data.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.pt (cannot be read|holds more than tensors)"):
        pyg_dataset(str(cora), "Planetoid", CORA)
