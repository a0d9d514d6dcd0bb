"""Folders as PyTorch Geometric's own data sets leave them, made up on the spot."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Data, InMemoryDataset


def toy(seed, nodes=40, classes=4, **more):
    """A random graph whose node i is of class i modulo the number of classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, 5, generator=generator)
    return Data(x=x, edge_index=torch.randint(nodes, (2, 3 * nodes), generator=generator), y=torch.arange(nodes) % classes, **more)


def masks(train, val, test, nodes=40):
    """Three masks over consecutive nodes."""
    ends = np.cumsum([0, train, val, test])
    rows = [torch.zeros(nodes, dtype=torch.bool) for _ in range(3)]
    for row, start, end in zip(rows, ends[:-1], ends[1:], strict=True):
        row[start:end] = True
    return dict(zip(("train_mask", "val_mask", "test_mask"), rows, strict=True))


def save(graphs, path):
    """Write a processed file the way PyG does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    InMemoryDataset.save(graphs, str(path))


@pytest.fixture
def pyg():
    """What makes graphs, masks and processed files."""
    return SimpleNamespace(toy=toy, masks=masks, save=save)


@pytest.fixture
def cora(tmp_path):
    """The folder of Planetoid's Cora, processed."""
    save([toy(0, **masks(20, 8, 12))], tmp_path / "Cora" / "processed" / "data.pt")
    return tmp_path


@pytest.fixture
def mutag(tmp_path):
    """The folder of TUDataset's MUTAG, raw: 20 paths of 4 nodes, closed to a ring where the label is 1."""
    raw = tmp_path / "MUTAG" / "raw"
    raw.mkdir(parents=True)
    edges, labels = [], [number % 2 for number in range(20)]
    for number, label in enumerate(labels):
        nodes = [4 * number + place for place in (1, 2, 3, 4)]
        links = list(zip(nodes, nodes[1:] + nodes[:1], strict=True))[: 4 if label else 3]
        edges += [f"{u}, {v}" for one in links for u, v in (one, one[::-1])]
    tables = {
        "A": edges,
        "graph_indicator": [str(number + 1) for number in range(20) for _ in range(4)],
        "graph_labels": ["1" if label else "-1" for label in labels],
        "node_labels": [str(place % 3) for place in range(80)],
        "node_attributes": [f"{place}.5, {place}.25" for place in range(80)],
    }
    for name, rows in tables.items():
        (raw / f"MUTAG_{name}.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def dblp(tmp_path):
    """The folder of DBLP, raw: 12 authors, 20 papers, 9 terms and 3 conferences."""
    raw = tmp_path / "raw"
    raw.mkdir()
    sizes = {"author": 12, "paper": 20, "term": 9, "conference": 3}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    draw = np.random.default_rng(0)
    adjacency = np.zeros((44, 44))
    for source, target in (("author", "paper"), ("paper", "term"), ("paper", "conference")):
        rows, columns = starts[source], starts[target]
        adjacency[rows : rows + sizes[source], columns : columns + sizes[target]] = draw.random((sizes[source], sizes[target])) < 0.3
    scipy.sparse.save_npz(raw / "adjM.npz", scipy.sparse.csr_matrix(adjacency + adjacency.T))
    scipy.sparse.save_npz(raw / "features_0.npz", scipy.sparse.csr_matrix(draw.random((12, 6))))
    scipy.sparse.save_npz(raw / "features_1.npz", scipy.sparse.csr_matrix(draw.random((20, 7))))
    np.save(raw / "features_2.npy", draw.random((9, 5)))
    np.save(raw / "node_types.npy", np.repeat([0, 1, 2, 3], list(sizes.values())))
    np.save(raw / "labels.npy", np.arange(12) % 4)
    np.savez(raw / "train_val_test_idx.npz", train_idx=np.arange(4), val_idx=np.arange(4, 8), test_idx=np.arange(8, 12))
    return tmp_path


class Trap:
    """Whose pickle creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = Path(marker)

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def trap(tmp_path_factory):
    """A pickle that runs, as its `sprung` tells; that it does is checked here, so that a test cannot pass on a dud."""
    folder = tmp_path_factory.mktemp("trap")
    made = Trap(folder / "sprung")
    pickle.loads(pickle.dumps(made))
    assert made.marker.exists()
    made.marker.unlink()
    return made
