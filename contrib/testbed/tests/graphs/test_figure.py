from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from torch_geometric.data import Data

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork_testbed import contact_sheet, diabetes
from graftwork_testbed.graphs import academic_network, davis_women, draw_graphs, graphon, karate, node_dataset, stochastic_block_model
from graftwork_testbed.graphs.layout import neighbourhood, order_nodes, seriation, spring_positions
from graftwork_testbed.graphs.panels import draw_matrix
from graftwork_testbed.sheets.paper import colour


def drawn(axes, kind):
    return [one for one in axes.collections if isinstance(one, kind)]


def words(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts} | {text.get_text() for text in figure.texts}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_nodes_of_the_split_are_full_and_the_others_pale():
    data = karate()
    links = draw_graphs(data, "val").axes[0]
    assert sum(len(one.get_offsets()) for one in drawn(links, PathCollection)) == 34
    assert len(drawn(links, LineCollection)[0].get_segments()) == 78
    strong = [one for one in drawn(links, PathCollection) if (one.get_edgecolors()[0, :3] == 1).all()]
    assert sum(len(one.get_offsets()) for one in strong) == len(data["val"][0]["nodes"])


def test_the_legend_names_the_classes_and_what_is_pale():
    assert legend(draw_graphs(karate(), "train")) == ["Mr. Hi", "Officer", "pale: not in train"]
    assert {"34 nodes, 78 edges", "adjacency, by class and degree"} <= words(draw_graphs(karate(), "train"))


def test_the_matrix_has_an_edge_where_there_is_one_in_the_class_s_colour():
    figure = draw_graphs(karate(), "train")
    image = figure.axes[1].images[0].get_array()
    graph = karate()["train"][0]["graph"]
    inked = (np.asarray(image) < 1).any(-1)
    assert inked.sum() == graph.num_edges
    assert (inked == inked.T).all()
    assert np.allclose(image[0, 1], to_rgb(colour(0)))  # the first class comes first, its largest degrees first


def matrix(pairs, nodes, **more):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw_matrix(axes, pairs, torch.arange(nodes), [colour(0)] * nodes, **more)
    return 1 - np.asarray(axes.images[0].get_array()).mean(-1)


def test_more_paths_are_darker():
    dark = matrix(torch.tensor([[0, 1, 2], [1, 2, 3]]), 5, counts=torch.tensor([1, 5, 50]))
    assert 0 < dark[0, 1] < dark[1, 2] < dark[2, 3]


def test_a_large_matrix_is_averaged_and_keeps_its_density():
    nodes = torch.arange(1000)
    dark = matrix(torch.cartesian_prod(nodes[:500], nodes[:500]).T, 1000)
    assert dark.shape == (400, 400)
    assert dark[:200, :200].min() > 0.3
    assert dark[200:].max() == dark[:, 200:].max() == 0


def test_a_large_graph_is_shown_in_part():
    figure = draw_graphs(stochastic_block_model([300, 300]), "train", nodes=80)
    assert "80 of 600 nodes" in words(figure)
    assert sum(len(one.get_offsets()) for one in drawn(figure.axes[0], PathCollection)) == 80


def test_a_bipartite_graph_stands_in_two_columns_with_its_names():
    figure = draw_graphs(davis_women(), "train")
    assert {"Evelyn Jefferson", "E14", "WEW, by class and degree", "32 nodes"} <= words(figure)
    across = {round(float(x), 3) for one in drawn(figure.axes[0], PathCollection) for x, _ in one.get_offsets()}
    assert across == {-0.45, 0.75}
    assert legend(figure) == ["first group", "second group", "event", "pale: not in train"]


def test_a_heterogeneous_graph_has_a_marker_a_type_and_a_matrix_a_meta_path():
    figure = draw_graphs(academic_network(papers=120, authors=80, terms=40), "train", nodes=120)
    assert len(figure.axes) == 4
    assert {"PAP, by class and degree", "PVP, by class and degree", "PTP, by class and degree", "60 of 256 nodes"} <= words(figure)
    assert legend(figure)[4:7] == ["author", "venue", "term"]


def test_many_graphs_have_a_row_a_class_and_each_is_drawn_twice():
    data = graphon(["mean", "constant"], graphs_per_class=10, min_nodes=8, max_nodes=12)
    figure = draw_graphs(data, "train", columns=3)
    assert len(figure.axes) == 2 * 2 * 3
    assert {"mean", "constant", "graphs"} <= words(figure)


def test_graphs_without_classes_are_drawn_too():
    pair = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=3)
    many = Dataset({"train": TensorSamples(graph=[pair] * 3)}, DatasetInfo(description="Pairs"))
    assert len(draw_graphs(many, "train", columns=2).axes) == 4
    one = node_dataset(pair, None, {"train": torch.arange(3)}, DatasetInfo())
    assert legend(draw_graphs(one, "train")) == ["no label"]


def test_an_edge_of_a_directed_graph_is_a_line_and_one_dot():
    arrows = Data(edge_index=torch.tensor([[2, 1, 0], [0, 0, 1]]), num_nodes=3)
    figure = draw_graphs(node_dataset(arrows, None, {"train": torch.arange(3)}, DatasetInfo()), "train")
    assert len(drawn(figure.axes[0], LineCollection)[0].get_segments()) == 2
    assert (np.asarray(figure.axes[1].images[0].get_array()) < 1).any(-1).sum() == 3
    assert "3 nodes, 2 edges" in words(figure)


def test_a_drawing_is_the_same_every_time_and_leaves_random_numbers_alone():
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    state, before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again = (draw_graphs(karate(), "train").axes[0].collections[1].get_offsets() for _ in range(2))
    assert np.array_equal(first, again)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert torch.get_rng_state().equal(before)


def test_a_contact_sheet_of_graphs_is_this_drawing(tmp_path):
    figure = contact_sheet(karate(), "train")
    assert legend(figure)[:2] == ["Mr. Hi", "Officer"]
    figure.savefig(tmp_path / "karate.png", dpi=50)
    assert (tmp_path / "karate.png").stat().st_size > 3000


def ring(nodes, start=0):
    one = torch.arange(nodes) + start
    pairs = torch.stack([one, one.roll(-1)])
    return torch.cat([pairs, pairs.flip(0)], dim=1)


@pytest.mark.parametrize("nodes", [1, 2, 30])
def test_positions_fill_the_square(nodes):
    positions = spring_positions(ring(nodes) if nodes > 2 else torch.empty(2, 0, dtype=torch.long), nodes, 0)
    assert positions.shape == (nodes, 2)
    assert np.abs(positions).max() == pytest.approx(1 if nodes > 1 else 0)


def test_components_do_not_overlap():
    pairs = torch.cat([ring(12), ring(9, 12), ring(5, 21)], dim=1)
    positions = spring_positions(pairs, 28, 0)
    groups = [range(12), range(12, 21), range(21, 26), [26], [27]]
    boxes = [(positions[list(group)].min(0), positions[list(group)].max(0)) for group in groups]
    for number, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:number]:
            assert (low > other_high).any() or (other_low > high).any()


def test_neighbourhoods_grow_by_breadth_up_to_their_limit():
    assert neighbourhood(ring(20), [5], 5, spread=8).tolist() == [3, 4, 5, 6, 7]
    assert neighbourhood(ring(4), [0], 50, spread=8).tolist() == [0, 1, 2, 3]
    star = torch.tensor([[0] * 9, list(range(1, 10))])
    star = torch.cat([star, star.flip(0)], dim=1)
    assert neighbourhood(star, [0], 50, spread=3).tolist() == [0, 1, 5, 9]
    assert neighbourhood(torch.empty(2, 0, dtype=torch.long), [2], 5, spread=3).tolist() == [2]


def test_rows_are_by_class_then_degree():
    star = torch.tensor([[3, 3, 3, 0, 1, 2], [0, 1, 2, 3, 3, 3]])
    assert order_nodes(star, 4).tolist() == [3, 0, 1, 2]
    assert order_nodes(star, 4, torch.tensor([1, 0, 1, 1])).tolist() == [1, 3, 0, 2]


def test_a_graph_in_two_parts_is_ordered_by_part_and_another_by_degree():
    part = torch.arange(20) % 2
    for joined in (part[:, None] != part, part[:, None] == part):
        pairs = (joined & ~torch.eye(20, dtype=torch.bool)).nonzero().T
        order = part[seriation(pairs, 20)]
        assert (order[1:] != order[:-1]).sum() == 1
    lollipop = torch.cat([torch.combinations(torch.arange(8)).T, torch.tensor([[7], [8]])], dim=1)
    pairs = torch.cat([lollipop, lollipop.flip(0)], dim=1)
    assert seriation(pairs, 9).equal(order_nodes(pairs, 9))
    assert seriation(torch.empty(2, 0, dtype=torch.long), 1).tolist() == [0]


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(DataError, match="a drawing wants `graph`; train has features, target, index"):
        draw_graphs(diabetes(), "train")
    with pytest.raises(DataError, match='no split "trian"'):
        draw_graphs(karate(), "trian")
    with pytest.raises(DataError, match="nothing to draw: train is empty"):
        draw_graphs(Dataset({"train": []}), "train")
    with pytest.raises(ValueError, match="columns must be at least 1; found 0"):
        draw_graphs(karate(), "train", columns=0)
    with pytest.raises(ValueError, match="nodes must be at least 1; found 0"):
        draw_graphs(karate(), "train", nodes=0)
