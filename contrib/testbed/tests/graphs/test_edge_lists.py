from __future__ import annotations

import pytest
import torch

from graftwork import DataError
from graftwork_testbed.graphs import edge_list

EDGES = "source,target\n10,2\n2,9\n9,10\n10,2\n2,10\n4,4\n"


@pytest.fixture
def write(tmp_path):
    def writer(text, name="edges.csv"):
        path = tmp_path / name
        path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
        return str(path)

    return writer


def read(path, **parameters):
    """The graph of a file; fractions under which four nodes leave no split empty."""
    return edge_list(path, **{"val_fraction": 0.25, "test_fraction": 0.25} | parameters)


def named(graph):
    return {(graph.names[u], graph.names[v]) for u, v in graph.edge_index.T.tolist()}


def test_an_undirected_edge_is_there_once_each_way(write):
    graph = read(write(EDGES))["train"][0]["graph"]
    assert graph.names == ["2", "4", "9", "10"]
    assert named(graph) == {("2", "9"), ("9", "2"), ("9", "10"), ("10", "9"), ("2", "10"), ("10", "2"), ("4", "4")}
    assert graph.num_edges == 7
    assert graph.is_coalesced()


def test_a_directed_edge_is_as_it_is_written(write):
    graph = read(write(EDGES), directed=True)["train"][0]["graph"]
    assert named(graph) == {("10", "2"), ("2", "9"), ("9", "10"), ("2", "10"), ("4", "4")}


def test_weights_of_repeated_edges_are_added(write):
    path = write("source\ttarget\tweight\nb\ta\t0.5\na\tb\t2\nb\tc\t4\nc\tc\t1\nc\td\t3\n", "edges.tsv")
    graph = read(path)["train"][0]["graph"]
    weights = dict(zip(((graph.names[u], graph.names[v]) for u, v in graph.edge_index.T.tolist()), graph.edge_weight.tolist(), strict=True))
    assert weights == {("a", "b"): 2.5, ("b", "a"): 2.5, ("b", "c"): 4, ("c", "b"): 4, ("c", "c"): 1, ("c", "d"): 3, ("d", "c"): 3}
    directed = read(path, directed=True)["train"][0]["graph"]
    assert directed.edge_weight.tolist() == [2, 0.5, 4, 1, 3]


def test_labels_are_sorted_classes_and_nodes_without_are_in_no_split(write):
    edges = write("source,target\n" + "".join(f"n{i},n{i + 1}\n" for i in range(40)))
    labels = write("node,label\n" + "".join(f"n{i},{'tall' if i % 2 else 'short'}\n" for i in range(40)) + "n40,\nalone,tall\n", "l.csv")
    data = edge_list(edges, labels)
    assert data.info.classes == ("short", "tall")
    graph = data["train"][0]["graph"]
    assert graph.num_nodes == 42
    assert "alone" in graph.names
    seen = {}
    for samples in data.values():
        seen |= {graph.names[node]: int(label) for node, label in zip(samples[0]["nodes"], samples[0]["label"], strict=True)}
    assert seen == {f"n{i}": i % 2 for i in range(40)} | {"alone": 1}
    assert edge_list(edges, labels, train_per_class=3)["train"][0]["label"].tolist().count(1) == 3


def test_without_labels_samples_have_none_and_nodes_are_split(write):
    data = edge_list(write("source,target\n" + "".join(f"{i},{i + 1}\n" for i in range(20))))
    assert all(set(samples[0]) == {"graph", "nodes", "index"} for samples in data.values())
    assert sum(len(samples[0]["nodes"]) for samples in data.values()) == 21
    assert data.collate([data["val"][0]])["nodes"].equal(data["val"][0]["nodes"])


def test_attributes_become_features_in_the_nodes_order(write):
    attributes = write("node,height,age\n9,1,2\n10,3,4\n2,5,6\n4,7,8.5\n", "a.csv")
    data = read(write(EDGES), attributes=attributes)
    assert data["train"][0]["graph"].x.tolist() == [[5, 6], [7, 8.5], [1, 2], [3, 4]]
    assert data.info.features == 2


def test_without_attributes_the_structure_stands_in(write):
    assert read(write(EDGES))["train"][0]["graph"].x.squeeze(1).tolist() == [2, 1, 2, 2]
    assert read(write(EDGES), features="none")["train"][0]["graph"].x is None


def test_a_byte_order_mark_quotes_and_empty_lines_are_read(write):
    path = write(b'\xef\xbb\xbfsource,target\n"Hugo, V.",Zola\n\nZola,Sand\nSand,Dumas\n')
    assert read(path)["train"][0]["graph"].names == ["Dumas", "Hugo, V.", "Sand", "Zola"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from,to\n1,2\n", r"must name the columns, beginning with source, target; found \['from', 'to'\]"),
        ("", r"beginning with source, target; found \[\]"),
        ("source,target\n", "has no rows"),
        ("source,target,colour\n1,2,red\n", "the columns are source, target and optionally weight; found source, target, colour"),
        ("source,target\n1,2\n3\n", "line 3: 2 cells are expected"),
        ("source,target\n1,\n", "line 2: 2 cells are expected, none of source, target empty"),
        ("source,target,weight\n1,2,heavy\n", "every cell must be a number"),
        ("source,target,weight\n1,2,inf\n", "every number must be finite"),
        (b"source,target\n\xff\xfe,2\n", "cannot be read as a table"),
        ('source,target\n"1,2\n', "cannot be read as a table"),
    ],
)
def test_files_that_are_no_table_of_edges_are_named(write, text, message):
    with pytest.raises(DataError, match=message):
        edge_list(write(text))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("labels", "node,label\n2,a\n2,b\n", 'names node "2" twice'),
        ("labels", "node,class\n2,a\n", "beside node the columns are label; found class"),
        ("labels", "node\n2\n", "beside node the columns are label; found none"),
        ("attributes", "node,x\n2,1\n", r"has no row for 3 of the 4 nodes, such as '4'"),
        ("attributes", "node\n2\n", "beside node the columns are numbers; found none"),
        ("attributes", "node,x\n2,1\n4,1\n9,1\n10,one\n", "every cell must be a number"),
    ],
)
def test_files_beside_the_edges_that_do_not_fit_are_named(write, kind, text, message):
    with pytest.raises(DataError, match=message):
        edge_list(write(EDGES), **{kind: write(text, "beside.csv")})


def test_missing_files_and_bad_parameters_are_named(write, tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read as a table: .*No such file"):
        edge_list(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="has more than 3 rows, which is max_edges"):
        edge_list(write(EDGES), max_edges=3)
    with pytest.raises(ValueError, match="max_edges must be at least 1; found 0"):
        edge_list(write(EDGES), max_edges=0)
    with pytest.raises(ValueError, match="train_per_class 2 needs labels, and no file of labels is given"):
        edge_list(write(EDGES), train_per_class=2)
    with pytest.raises(ValueError, match="features must be one of"):
        edge_list(write(EDGES), features="ones")


def test_the_fingerprint_follows_the_files(write):
    first = read(write(EDGES)).fingerprint()
    assert read(write(EDGES)).fingerprint() == first
    assert read(write(EDGES.replace("2,9", "2,4"))).fingerprint() != first


def test_edges_of_numbers_are_ordered_as_numbers_and_others_as_text(write):
    assert read(write("source,target\n10,9\n1,2\n"))["train"][0]["graph"].names == ["1", "2", "9", "10"]
    assert read(write("source,target\nn10,n9\nn1,n2\n"))["train"][0]["graph"].names == ["n1", "n10", "n2", "n9"]
    assert torch.equal(
        read(write("source,target\n10,9\n1,2\n"))["train"][0]["graph"].edge_index, torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    )
