"""Exact search against faiss and a full argsort, scoring against a plain loop, verification against scikit-image, in one process.

Times are of the process's CPU, one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from graftwork.testing import median_seconds
from graftwork_google_landmarks import (
    Matches,
    RetrievalPredictions,
    Solution,
    affine_inliers,
    average_precisions,
    exact_topk,
    first_positions,
    mean_precisions,
    read_labelled,
    retrieval_hits,
)
from graftwork_google_landmarks.solutions import USAGES
from graftwork_google_landmarks.tables import Lists


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.bench
def test_top_100_of_50_000_takes_at_most_one_and_a_half_times_faiss(capsys) -> None:
    faiss = pytest.importorskip("faiss", reason="needs faiss-cpu to race against")
    faiss.omp_set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.nn.functional.normalize(torch.randn(n, 512, generator=generator), dim=1) for n in (256, 50_000))
    index = faiss.IndexFlatIP(512)
    index.add(gallery.numpy())
    ours, theirs = exact_topk(queries, gallery, 100, "dot"), index.search(queries.numpy(), 100)
    np.testing.assert_allclose(ours.scores.numpy(), theirs[0], atol=1e-6)
    assert (ours.indices.numpy() == theirs[1]).mean() > 0.999
    ways = [
        lambda: exact_topk(queries, gallery, 100, "dot"),
        lambda: index.search(queries.numpy(), 100),
        lambda: np.argsort(-(queries.numpy() @ gallery.numpy().T), axis=1)[:, :100],
    ]
    seconds = median_seconds(ways, 3, processor=True)
    with capsys.disabled():
        print(f"\ntop-100 of 50,000 x 512, 256 queries: {seconds[0]:.3f} s, faiss {seconds[1]:.3f} s, argsort {seconds[2]:.3f} s;", end=" ")
        print(f"{seconds[0] / seconds[1]:.2f} of faiss, argsort {seconds[2] / seconds[0]:.1f} times ours")
    assert seconds[0] <= 1.5 * seconds[1]
    assert seconds[2] >= 2 * seconds[0]


def plain_loop(predictions: dict[str, list[str]], solution: dict[str, list[str]]) -> tuple[float, np.ndarray, np.ndarray]:
    """The three retrieval metrics, query by query, with sets and lists, each by itself as the public script does."""
    total = 0.0
    for query, ranked in predictions.items():
        right, sums, seen = 0, 0.0, set()
        for rank, image in enumerate(ranked):
            if image not in seen:
                if image in solution[query]:
                    right += 1
                    sums += right / (rank + 1)
                seen.add(image)
        total += sums / min(len(solution[query]), 100)
    precisions = np.zeros((len(solution), 100))
    for row, (query, ranked) in enumerate(predictions.items()):
        right, seen = 0, set()
        for rank in range(100):
            if ranked[rank] not in seen:
                right += ranked[rank] in solution[query]
                seen.add(ranked[rank])
            precisions[row, rank] = right / (rank + 1)
    positions = np.full(len(solution), 101)
    for row, (query, ranked) in enumerate(predictions.items()):
        positions[row] = next((rank + 1 for rank, image in enumerate(ranked) if image in solution[query]), 101)
    return total / len(solution), precisions.mean(axis=0), positions


@pytest.mark.bench
@pytest.mark.parametrize("right", [0.05, 0.3])
def test_scoring_is_at_least_ten_times_a_plain_loop(right: float, capsys) -> None:
    """20,000 queries, 100 predictions each, 1 to 59 right answers; the real file has 117,577 queries, most of them Ignored."""
    count, generator = 20_000, np.random.default_rng(0)
    index, ids = (np.array([f"{n:016x}".encode() for n in generator.integers(0, 2**63, size)], "S16") for size in (400_000, count))
    answers = generator.integers(1, 60, count)
    offsets = np.concatenate([[0], np.cumsum(answers)])
    truths = index[generator.integers(0, len(index), offsets[-1])]
    picked = truths[offsets[:-1, None] + (generator.random((count, 100)) * answers[:, None]).astype(int)]
    ranked = np.where(generator.random((count, 100)) < right, picked, index[generator.integers(0, len(index), (count, 100))])
    solution = Solution("retrieval", ids, Lists(offsets, truths), np.full(count, USAGES.index("Private"), np.int8))
    predictions = RetrievalPredictions(ids, Lists(np.arange(count + 1) * 100, ranked.ravel()))
    answered = {name.decode(): truths[a:b].astype(str).tolist() for name, a, b in zip(ids, offsets[:-1], offsets[1:], strict=True)}
    listed = {name.decode(): row.astype(str).tolist() for name, row in zip(ids, ranked, strict=True)}

    def ours() -> tuple[float, np.ndarray, np.ndarray]:
        hits = retrieval_hits(predictions, solution)
        return float(average_precisions(hits).mean()), mean_precisions(hits), first_positions(hits)

    for mine, theirs in zip(ours(), plain_loop(listed, answered), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    seconds = median_seconds([ours, lambda: plain_loop(listed, answered)], 3, processor=True)
    with capsys.disabled():
        print(f"\nscoring {count} x 100, {right:.0%} right: {seconds[0]:.3f} s, a loop {seconds[1]:.3f} s:", end=" ")
        print(f"{seconds[1] / seconds[0]:.1f} times")
    assert seconds[1] >= 10 * seconds[0]


@pytest.mark.bench
def test_verification_of_many_pairs_is_at_least_ten_times_scikit_image(capsys) -> None:
    measure = pytest.importorskip("skimage.measure", reason="needs scikit-image to race against")
    transform = pytest.importorskip("skimage.transform")
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(64, 80, 2, generator=generator) * 500
    linear = torch.eye(2) + 0.1 * torch.randn(64, 2, 2, generator=generator)
    target = source @ linear + torch.randn(64, 80, 2, generator=generator)
    target[:, 40:] += 300 + 400 * torch.rand(64, 40, 2, generator=generator)
    matches = Matches(source, target, torch.full((64,), 80))

    def theirs() -> list[int]:
        found = []
        for a, b in zip(source.numpy(), target.numpy(), strict=True):
            _, inliers = measure.ransac((a, b), transform.AffineTransform, min_samples=3, residual_threshold=20, max_trials=1000, rng=0)
            found.append(int(inliers.sum()))
        return found

    assert np.abs(affine_inliers(matches).numpy() - np.array(theirs())).max() <= 1
    seconds = median_seconds([lambda: affine_inliers(matches), theirs], 1, processor=True)
    with capsys.disabled():
        print(f"\n64 pairs of 80 matches, 1000 trials: {seconds[0]:.3f} s against {seconds[1]:.3f} s, {seconds[1] / seconds[0]:.1f} times")
    assert seconds[1] >= 10 * seconds[0]


@pytest.mark.bench
def test_the_train_file_opens_in_ten_seconds_of_cpu(tmp_path: Path, capsys) -> None:
    path, count = tmp_path / "train.csv", 4_132_914
    with path.open("w") as file:
        file.write("id,url,landmark_id\n")
        for start in range(0, count, 100_000):
            rows = range(start, min(count, start + 100_000))
            file.writelines(f"{n * 2654435761 % 2**64:016x},https://upload.wikimedia.org/a/ab/File_{n}.jpg,{n % 203094}\n" for n in rows)
    started = time.process_time()
    table = read_labelled(path)
    seconds = time.process_time() - started
    assert len(table.ids) == count
    with capsys.disabled():
        print(f"\n4,132,914 rows: {seconds:.2f} s of CPU, {(table.ids.nbytes + table.landmarks.nbytes) / 1e6:.0f} MB")
    assert seconds < 10
