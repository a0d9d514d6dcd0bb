"""What is said where PyTorch Geometric or networkx is not installed, and that nothing is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import graftwork as gw
from graftwork.errors import GraftworkError
from graftwork_testbed.graphs import draw_graphs, graphon

INSTALL = r'cannot be imported \(.*\): pip install "graftwork-testbed\[graphs\]"'


def test_importing_every_module_imports_neither():
    modules = "social blocks graphons academic meta_paths edge_lists pyg_files pyg_datasets features samples figure layout panels extra"
    code = f"""
import importlib, sys
sys.modules["torch_geometric"] = None
for name in "{modules}".split():
    importlib.import_module("graftwork_testbed.graphs." + name)
print([name for name in sys.modules if name.startswith("torch_geometric.")])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["karate", "les-miserables", "davis-women", "stochastic-block-model", "graphon", "academic-network"])
def test_building_without_torch_geometric_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(GraftworkError, match=f"torch_geometric.data {INSTALL}"):
        gw.dataset(name)


def test_so_do_files(monkeypatch, tmp_path):
    (tmp_path / "edges.csv").write_text("source,target\n" + "".join(f"{i},{i + 1}\n" for i in range(9)))
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(GraftworkError, match=f"torch_geometric.data {INSTALL}"):
        gw.dataset("edge-list", edges=str(tmp_path / "edges.csv"))
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", None)
    with pytest.raises(GraftworkError, match=f"torch_geometric.datasets {INSTALL}"):
        gw.dataset("pyg-dataset", root=str(tmp_path), name="Planetoid")


def test_so_do_social_networks_and_drawings_without_networkx(monkeypatch):
    data = graphon(["mean"], graphs_per_class=8)
    monkeypatch.setitem(sys.modules, "networkx", None)
    for name in ("karate", "les-miserables", "davis-women"):
        with pytest.raises(GraftworkError, match=f"networkx {INSTALL}"):
            gw.dataset(name)
    with pytest.raises(GraftworkError, match=f"networkx {INSTALL}"):
        draw_graphs(data, "train")
