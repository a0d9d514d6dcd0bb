"""The encoder: layer norm, contexts, attention, both views, and what it leaves out when asked to."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import graftwork as gw
from graftwork_meta_path_contrast import CoarseGraphEncoder, MetaPathEncoder, NodeFeatures, ViewAttention, layer_norm_whole, meta_path_views


def eval_pair(model, views):
    model.eval()
    with torch.no_grad():
        return model(views)


def test_layer_norm_is_over_the_whole_matrix_and_not_over_rows() -> None:
    z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)[:, None] + 3
    out = layer_norm_whole(z)
    torch.testing.assert_close(out.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.var(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(out, (z - z.mean()) / z.std(correction=0), atol=1e-4, rtol=1e-4)
    assert out.mean(dim=1).abs().max() > 0.1


def test_attention_is_a_softmax_over_views_of_a_query_with_mean_summaries() -> None:
    torch.manual_seed(0)
    attention, views = ViewAttention(4), [torch.randn(6, 4) for _ in range(3)]
    scores = torch.stack(
        [attention.query[0] @ torch.tanh(v @ attention.transform.weight.T + attention.transform.bias).mean(0) for v in views]
    )
    expected = sum(w * v for w, v in zip(scores.softmax(0), views, strict=True))
    torch.testing.assert_close(attention(views), expected)


def test_the_encoder_is_its_formula(views, encoder_for) -> None:
    model = encoder_for(views)
    coarse, fine = eval_pair(model, views)
    layers = dict(zip(model.types, model.projections, strict=True))
    with torch.no_grad():
        h = {kind: functional.elu(layers[kind](views.features[kind].to_dense())) for kind in model.types}
        target, masked = (
            functional.elu(model.target_projections[0](x.to_dense())) for x in (views.features["paper"], views.masked_features)
        )
        gcn = lambda x, a: layer_norm_whole(  # noqa: E731
            a @ (model.gcn.activation(a @ (x @ model.gcn.first.weight)) @ model.gcn.second.weight)
        )
        aggregations, z = iter(model.aggregations), []
        for path in views.paths:
            context = sum(next(aggregations)(table.to_dense() @ h[kind]) for kind, table in path.contexts)
            for base, adjacency in ((target, path.adjacency), (masked, path.masked)):
                z.append(functional.normalize(gcn(functional.elu(base + context), adjacency.to_dense()), dim=1))
        torch.testing.assert_close(fine, model.attention(z))
        torch.testing.assert_close(coarse, gcn(target, views.coarse.to_dense()))
        torch.testing.assert_close(model.embed(views), fine)


def test_both_plain_and_masked_views_of_every_path_enter_attention(views, paths, encoder_for) -> None:
    weights = encoder_for(views).eval().view_weights(views)
    assert list(weights) == [name for path in paths for name in (path, f"{path} masked")]
    assert sum(weights.values()) == pytest.approx(1)


def test_each_place_between_the_ends_of_each_path_has_a_matrix_without_bias(views, encoder_for) -> None:
    model = encoder_for(views)
    assert len(model.aggregations) == 1 + 1 + 3
    assert all(layer.bias is None for layer in model.aggregations)


def test_an_empty_context_leaves_the_target_as_it_is(graph_of) -> None:
    graph = graph_of({("paper", "author"): [(0, 0), (1, 0)]}, {"paper": 3, "author": 1}, {"paper": torch.eye(3)})
    with pytest.warns(UserWarning, match="self-loop"):
        views = meta_path_views(graph, "paper", ["PAP"])
    assert views.paths[0].contexts[0][1].to_dense()[2].tolist() == [0]


def test_the_coarse_view_sees_no_context_and_the_fine_one_does(views, encoder_for) -> None:
    model = encoder_for(views)
    before = eval_pair(model, views)
    with torch.no_grad():
        for layer in model.aggregations:
            layer.weight.mul_(2)
    after = eval_pair(model, views)
    assert torch.equal(before.coarse, after.coarse)
    assert not torch.allclose(before.fine, after.fine)


def test_without_context_the_features_of_other_types_change_nothing(views, paths, drawn, encoder_for) -> None:
    model = encoder_for(views, context=False)
    graph, _ = drawn()
    graph["author"].x = graph["author"].x.flip(0)
    other = meta_path_views(graph, "paper", paths, top_k=12)
    assert not torch.equal(eval_pair(encoder_for(views), views).fine, eval_pair(encoder_for(views), other).fine)
    assert torch.equal(eval_pair(model, views).fine, eval_pair(model, other).fine)


def test_per_path_projections_take_features_of_each_path_and_coarse_their_mean(paths, drawn, encoder_for) -> None:
    graph, _ = drawn()
    graph["paper"].x = torch.rand(24, 3, 6, generator=torch.Generator().manual_seed(1))
    views = meta_path_views(graph, "paper", paths, top_k=12)
    with pytest.raises(ValueError, match="set target_projection to per-path"):
        encoder_for(views)(views)
    model = encoder_for(views, target_projection="per-path", context=False).eval()
    h = [functional.elu(layer(views.features["paper"][:, i])) for i, layer in enumerate(model.target_projections)]
    torch.testing.assert_close(model(views).coarse, model.gcn(torch.stack(h).mean(0), views.coarse))


def test_the_masked_branch_can_leave_dropout_off(views, encoder_for) -> None:
    model = encoder_for(views, masked_dropout=False, context=False, dropout=0.5).train()
    torch.manual_seed(0)
    seen = []
    model.gcn.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(views)
    expected = functional.elu(functional.elu(model.target_projections[0](views.masked_features)))
    torch.testing.assert_close(seen[2], expected.detach())


def test_permuting_nodes_permutes_embeddings(drawn, paths, encoder_for) -> None:
    def views_of(order):
        graph, _ = drawn()
        graph["paper"].x = graph["paper"].x[order]
        for kind in graph.edge_types:
            if kind[0] == "paper":
                source, target = graph[kind].edge_index
                graph[kind].edge_index = torch.stack([order.argsort()[source], target])
        return meta_path_views(graph, "paper", paths, feature_mask=0, edge_mask=0)

    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    plain, moved = views_of(torch.arange(24)), views_of(order)
    model = encoder_for(plain)
    torch.testing.assert_close(eval_pair(model, moved).fine, eval_pair(model, plain).fine[order], atol=1e-5, rtol=1e-4)


def test_gradient_reaches_every_parameter(views, encoder_for) -> None:
    model = encoder_for(views)
    coarse, fine = model(views)
    (coarse[0, 0] + fine[0].sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_embeddings_of_some_nodes_are_rows_of_all(views, encoder_for) -> None:
    model, nodes = encoder_for(views).eval(), torch.tensor([5, 2])
    torch.testing.assert_close(model.embed(views, nodes), model.embed(views)[nodes])
    assert torch.equal(model(views, nodes).coarse, model(views).coarse[nodes])


def test_a_saved_encoder_loads_to_the_same_embeddings(small, views, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    model = gw.model("meta-path-encoder", data=small, hidden=8, embedding_dim=8)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = gw.model("meta-path-encoder", data=small, hidden=8, embedding_dim=8)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(eval_pair(model, views).fine, eval_pair(other, views).fine)


def test_the_baselines_embed(small, views) -> None:
    coarse = gw.model("coarse-graph-encoder", data=small, embedding_dim=8).eval()
    assert isinstance(coarse, CoarseGraphEncoder)
    assert torch.equal(coarse.encode_views(views).coarse, coarse.embed(views))
    assert torch.equal(NodeFeatures().embed(views, torch.tensor([1])), views.features["paper"].to_dense()[[1]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; found 1.0"),
        ({"hidden": 0}, "hidden must be at least 1; found 0"),
        ({"target_projection": "each"}, 'target_projection is "shared" or "per-path"; found "each"'),
        ({"paths": []}, "at least one meta-path"),
        ({"widths": {"paper": 6}}, "widths has no entry for author"),
    ],
)
def test_bad_settings_are_refused(views, settings, message, paths) -> None:
    with pytest.raises(ValueError, match=message):
        MetaPathEncoder(**{"target": "paper", "widths": views.widths, "paths": list(paths.values()), **settings})


def test_views_of_other_paths_are_refused(views, drawn, encoder_for) -> None:
    other = meta_path_views(drawn()[0], "paper", ["PAP"])
    with pytest.raises(ValueError, match="the encoder was made for the meta-paths"):
        encoder_for(views)(other)


def test_a_model_of_a_dataset_without_views_is_refused() -> None:
    data = gw.Dataset({"train": gw.TensorSamples(features=torch.zeros(3, 2))})
    with pytest.raises(gw.DataError, match="wrap the dataset in meta-path-views"):
        gw.model("meta-path-encoder", data=data)
