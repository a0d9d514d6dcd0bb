"""Typed graphs: the authors' folders, offline graphs, other datasets; their splits, and what is refused. And a pipeline over all of it."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import graftwork as gw
from graftwork_meta_path_contrast import labelled_graph, path_counts, pydoc_graph, read_official_folder, scene_graph


@pytest.fixture
def acm(tmp_path):
    """A folder laid out as the authors' acm."""
    root, rng = tmp_path / "acm", np.random.default_rng(0)
    root.mkdir()
    sp.save_npz(root / "nei_a.npz", sp.coo_matrix(np.eye(30, 20) + np.eye(30, 20, k=-9)))
    sp.save_npz(root / "nei_s.npz", sp.coo_matrix(np.eye(5)[np.arange(30) % 5]))
    sp.save_npz(root / "p_feat.npz", sp.csr_matrix(rng.random((30, 7)).round()))
    sp.save_npz(root / "a_feat.npz", sp.csr_matrix(rng.random((20, 7)).round()))
    np.save(root / "labels.npy", (np.arange(30) % 3).astype(float))
    for n, count in ((20, 6), (40, 9)):
        for split, start in (("train", 0), ("val", count), ("test", 20)):
            np.save(root / f"{split}_{n}.npy", np.arange(start, start + count))
    return root


def test_an_official_folder_has_its_links_features_splits_and_meta_paths(acm) -> None:
    data = gw.dataset("hetero-graph", folder=str(acm))
    assert list(data) == ["train", "val", "test", *(f"{n}/{split}" for n in (20, 40) for split in ("train", "val", "test"))]
    sample = data["40/val"][0]
    assert sample["nodes"].tolist() == list(range(9, 18))
    assert sample["label"].tolist() == [n % 3 for n in range(9, 18)]
    assert sample["graph"].meta_paths == {"PAP": ("paper", "author", "paper"), "PSP": ("paper", "subject", "paper")}
    incidence = sp.load_npz(acm / "nei_a.npz").toarray()
    with pytest.warns(UserWarning, match="1 of 30 paper nodes lie on no instance"):
        counts = path_counts(sample["graph"], "PAP", "paper").toarray()
    expected = incidence @ incidence.T
    expected[29, 29] = 1
    assert (counts == expected).all()
    assert data.info.classes == ("0", "1", "2")


def test_no_graph_holds_a_label_and_each_split_only_its_own(acm) -> None:
    data = gw.dataset("hetero-graph", folder=str(acm))
    assert all("y" not in store for store in data["train"][0]["graph"].stores)
    assert len(data["train"][0]["label"]) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [("labels.npy", "labels.npy is missing: copy the whole folder"), ("nei_a.npz", "holds the links of none of acm, dblp, aminer, imdb")],
)
def test_a_missing_file_is_named(acm, name, message) -> None:
    (acm / name).unlink()
    with pytest.raises(gw.DataError, match=message):
        read_official_folder(acm)


def test_a_pickled_file_is_refused(acm) -> None:
    np.save(acm / "labels.npy", np.array([{}] * 30, dtype=object), allow_pickle=True)
    with pytest.raises(gw.DataError, match=r"labels\.npy cannot be read"):
        read_official_folder(acm)


def test_as_many_labels_as_nodes_are_expected(acm) -> None:
    np.save(acm / "labels.npy", np.arange(29) % 3)
    with pytest.raises(gw.DataError, match="has 29 labels for 30 paper nodes"):
        read_official_folder(acm)
    with pytest.raises(gw.DataError, match="there is no folder"):
        read_official_folder(acm / "nowhere")


def test_a_graph_of_ones_own_is_split_by_so_many_of_each_class(drawn) -> None:
    graph, labels = drawn(330)
    data = labelled_graph(graph, "paper", labels, val_nodes=30, test_nodes=50)
    assert [name for name in data if name.endswith("train")] == ["train", "20/train", "40/train", "60/train"]
    for n in (20, 40, 60):
        parts = [data[f"{n}/{split}"][0] for split in ("train", "val", "test")]
        assert torch.bincount(parts[0]["label"]).tolist() == [n] * 3
        assert len(parts[1]["nodes"]) == 30
        assert len(parts[2]["nodes"]) == 50
        assert len(torch.cat([part["nodes"] for part in parts]).unique()) == 3 * n + 80
    again = labelled_graph(graph, "paper", labels, val_nodes=30, test_nodes=50)
    assert torch.equal(again["test"][0]["nodes"], data["test"][0]["nodes"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(23, dtype=torch.long), r"there are labels \(23,\) for 24 paper nodes: one each is expected"),
        (None, "paper nodes have no labels"),
        (torch.rand(24), "labels are whole numbers of at least two classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message, drawn) -> None:
    with pytest.raises(gw.DataError, match=message):
        labelled_graph(drawn()[0], "paper", labels)


def test_labels_of_the_graph_itself_are_taken_off_it(drawn) -> None:
    graph, labels = drawn()
    graph["paper"].y, graph["paper"].train_mask = labels, labels > 0
    found = labelled_graph(graph, "paper", per_class=[2])["train"][0]
    assert torch.equal(found["label"], labels[found["nodes"]])
    assert not {"y", "train_mask"} & set(found["graph"]["paper"])
    assert "y" in graph["paper"]


def test_another_dataset_is_split_anew() -> None:
    inner = gw.dataset("academic-network", papers=60, authors=50, terms=30, venues=4)
    data = gw.dataset("hetero-graph", data=inner, per_class=[5])
    assert torch.bincount(data["train"][0]["label"]).tolist() == [5] * 4
    known = {int(n): int(y) for split in inner for n, y in zip(inner[split][0]["nodes"], inner[split][0]["label"], strict=True)}
    assert all(known[int(n)] == int(y) for n, y in zip(data["test"][0]["nodes"], data["test"][0]["label"], strict=True))
    assert set(data["train"][0]["graph"].meta_paths) == {"PAP", "PVP", "PTP"}


def test_davis_southern_women_meet_as_often_as_the_book_says() -> None:
    graph = gw.dataset("davis-women")["train"][0]["graph"]
    counts = path_counts(graph, ["woman", "event", "woman"], "woman").toarray()
    attendance = torch.zeros(18, 14)
    attendance[tuple(graph["woman", "event"].edge_index)] = 1
    assert (counts == (attendance @ attendance.T).numpy()).all()
    assert counts.diagonal().sum() == 89  # attendances in Davis, Gardner and Gardner, 1941


@pytest.mark.parametrize(
    ("name", "kinds"), [("pydoc-topics", {"topic", "word"}), ("digit-scenes", {"scene", "digit", "colour", "texture", "relation"})]
)
def test_offline_graphs_have_views(name, kinds) -> None:
    data = gw.dataset("meta-path-views", data={"use": "hetero-graph", "graph": name, "scenes": 48, "per_class": [1]}, top_k=10)
    sample = data["train"][0]
    assert set(sample["graph"].node_types) == kinds
    assert data.fingerprint() == data.fingerprint()


def test_a_scene_is_linked_to_the_wrong_texture_as_often_as_the_noise_says() -> None:
    graph, labels, classes = scene_graph(48, noise=0.0)
    assert torch.equal(graph["scene", "texture"].edge_index, torch.stack([torch.arange(48), labels]))
    noisy, _, _ = scene_graph(48, noise=1.0)
    assert 0 < (noisy["scene", "texture"].edge_index[1] == labels).float().mean() < 0.5
    assert len(classes) == 6
    with pytest.raises(ValueError, match="noise must be 0 to 1; found 2"):
        scene_graph(48, noise=2)


def test_help_topics_point_to_one_another_both_ways() -> None:
    graph, labels, areas = pydoc_graph()
    pairs = set(map(tuple, graph["topic", "topic"].edge_index.T.tolist()))
    assert pairs
    assert {(b, a) for a, b in pairs} == pairs
    assert int(labels.max()) < len(areas)
    assert (graph["topic"].x.sum(0) >= 2).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "name one of graph, folder and data; found none"), ({"graph": "pydoc-topics", "folder": "x"}, "found graph and folder")],
)
def test_exactly_one_source_is_named(settings, message) -> None:
    with pytest.raises(gw.ConfigError, match=message):
        gw.dataset("hetero-graph", **settings)


def test_views_need_a_typed_graph_with_meta_paths(drawn) -> None:
    with pytest.raises(gw.DataError, match='split "train" holds no typed graph'):
        gw.dataset("meta-path-views", data=gw.Dataset({"train": gw.TensorSamples(features=torch.zeros(2, 2))}))
    graph, labels = drawn()
    with pytest.raises(gw.DataError, match=r"the graph has no meta_paths of its own: name meta_paths, such as \[PAP, PSP\]"):
        gw.dataset("meta-path-views", data=labelled_graph(graph, "paper", labels, per_class=[2]))


def test_views_moved_to_a_type_are_kept(small, paths) -> None:
    views = small["train"][0]["views"]
    double = views.to(torch.float64)
    assert double is views.to(torch.float64)
    assert double.coarse.dtype == torch.float64
    assert views.to("cpu") is views
    assert set(views.widths) == {"paper", "author", "subject", "institute"}
    assert [path.name for path in views.paths] == list(paths)


def test_the_recipe_is_sound_and_a_small_one_runs(tmp_path) -> None:
    recipe = files("graftwork_meta_path_contrast") / "recipes" / "meta-path-contrast.yaml"
    assert (
        len(
            gw.Pipeline.from_yaml(
                str(recipe),
                [
                    "stages.features.dataset.data.scenes=48",
                    "stages.features.dataset.data.per_class=[2]",
                    "stages.features.dataset.top_k=10",
                    *(f"stages.{s}.objective.clusters=[3, 6]" for s in ("meow", "no-context", "no-weights", "no-prototypes")),
                ],
            )
            .assemble()
            .stages
        )
        == 7
    )
    views = {"use": "meta-path-views", "data": {"use": "hetero-graph", "graph": "pydoc-topics", "per_class": [1]}, "top_k": 10}
    stage = {
        "dataset": views,
        "model": {"use": "meta-path-encoder", "data": views, "embedding_dim": 8, "hidden": 8},
        "objective": {"use": "meow", "clusters": [4, 8], "kmeans_restarts": 1},
        "train": {"steps": 2},
        "evaluate": [
            {"use": "node-classification-probe", "runs": 2, "steps": 5},
            {"use": "node-clustering", "runs": 2},
            "negative-weight-analysis",
            "linear-probe",
        ],
    }
    result = gw.Pipeline.from_dict({"name": "small", "stages": {"meow": stage}}).run(tmp_path / "run", device="cpu")
    assert {"meow/macro-f1", "meow/nmi", "meow/false-negative-auc", "meow/linear-probe-accuracy"} <= set(result.metrics)
    assert (tmp_path / "run/stages/meow/negative-weight-analysis/weights.png").exists()
