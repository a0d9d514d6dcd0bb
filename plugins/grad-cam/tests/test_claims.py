"""The paper's claims in miniature, on scenes of handwritten digits: minutes on a CPU, three seeds."""

from __future__ import annotations

import statistics
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate

from graftwork import Dataset, DatasetInfo, TensorSamples
from graftwork_grad_cam.box_contrast import BoxContrast
from graftwork_grad_cam.boxes import box_masks
from graftwork_grad_cam.grad_cam import GradCAM, grad_cam
from graftwork_grad_cam.guided_backprop import GuidedBackprop
from graftwork_grad_cam.guided_grad_cam import GuidedGradCAM
from graftwork_grad_cam.localization import mass_inside, peaks, pointing_hits
from graftwork_grad_cam.pointing_game import PointingGame
from graftwork_grad_cam.saliency_localization import SaliencyLocalization

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SIDE, DIGIT, SEEDS = 64, 24, (0, 1, 2)


@cache
def handwriting() -> tuple[Tensor, Tensor]:
    """1,797 digits of 24 x 24 in [0, 1], and their classes."""
    datasets = pytest.importorskip("sklearn.datasets")
    table, labels = datasets.load_digits(return_X_y=True)
    small = torch.from_numpy(table).float().view(-1, 1, 8, 8) / 16
    return interpolate(small, size=(DIGIT, DIGIT), mode="bicubic").clamp(0, 1).squeeze(1), torch.from_numpy(labels).long()


def texture(count: int, generator: torch.Generator, angle: Tensor | None = None) -> Tensor:
    """Backgrounds (N, 64, 64): soft noise, with faint stripes where angles are given."""
    coarse = torch.rand(count, 1, 16, 16, generator=generator)
    ground = 0.35 * interpolate(coarse, size=(SIDE, SIDE), mode="bilinear").squeeze(1) + 0.1 * torch.rand(
        count, SIDE, SIDE, generator=generator
    )
    if angle is None:
        return ground
    line = torch.arange(SIDE).float()
    across = line * angle.cos()[:, None, None] + line[:, None] * angle.sin()[:, None, None]
    return ground + 0.25 * (1 + (0.9 * across).sin())


def scenes(count: int, held_out: bool, seed: int, digits: int = 2, angle: Tensor | None = None) -> dict[str, Tensor]:
    """Scenes of digits of different classes that do not overlap; digits of training and test were written apart."""
    generator = torch.Generator().manual_seed(1000 * seed + held_out)
    glyphs, classes = handwriting()
    rows = torch.arange(len(classes))[(torch.arange(len(classes)) % 4 == 0) == held_out]
    labels = torch.rand(count, 10, generator=generator).argsort(dim=1)[:, :digits]
    which = torch.where(classes[rows] == labels[:, :, None], torch.rand(count, digits, len(rows), generator=generator), -1).argmax(dim=2)
    slots = torch.stack([torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])], dim=1) * (SIDE // 2)
    slot = slots[torch.rand(count, 4, generator=generator).argsort(dim=1)[:, :digits]]
    corner = slot + torch.randint(0, SIDE // 2 - DIGIT + 1, (count, digits, 2), generator=generator)
    image, mask = texture(count, generator, angle), torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    step, samples = torch.arange(DIGIT), torch.arange(count)[:, None, None]
    for index in range(digits):
        y, x = corner[:, index, 0, None, None] + step[:, None], corner[:, index, 1, None, None] + step
        glyph = glyphs[rows[which[:, index]]]
        image[samples, y, x] = torch.maximum(image[samples, y, x], glyph)
        mask[samples, y, x] = torch.where(glyph > 0.4, labels[:, index, None, None] + 1, 0)
    boxes = torch.cat([corner.flip(2), corner.flip(2) + DIGIT], dim=2).float()
    return {"image": image.unsqueeze(1), "mask": mask, "boxes": boxes, "labels": labels, "label": labels[:, 0]}


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.skip(x))


class SmallResNet(nn.Module):
    """Three residual stages down to 8 x 8 positions, average pooling, a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(Residual(16, 24, 1), Residual(24, 48, 2), Residual(48, 96, 2))
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))


def trained(data: dict[str, Tensor], seed: int, epochs: int, multi_label: bool) -> nn.Module:
    torch.manual_seed(seed)
    model, rate, batch = SmallResNet(), 3e-3, 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * (len(data["image"]) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    target = torch.zeros(len(data["image"]), 10).scatter_(1, data["labels"], 1.0) if multi_label else data["label"]
    lose = binary_cross_entropy_with_logits if multi_label else cross_entropy
    for step in range(steps):
        if step % (steps // epochs) == 0:
            order = torch.randperm(len(data["image"]))
        rows = order[(step % (steps // epochs)) * batch :][:batch]
        loss = lose(model(data["image"][rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@cache
def classifier(seed: int) -> tuple[nn.Module, Dataset]:
    """A multi-label classifier of two-digit scenes, and test scenes of digits that it has not seen."""
    model = trained(scenes(3000, False, seed), seed, 14, multi_label=True)
    test = TensorSamples(**scenes(300, True, seed))
    return model, Dataset({"test": test}, DatasetInfo(classes=tuple("0123456789"), channels=1, size=(SIDE, SIDE)))


@cache
def pointing(seed: int) -> dict[str, float]:
    """Accuracy on the boxes, without tolerance, of each way to point."""
    model, data = classifier(seed)
    boxes = Dataset({"test": TensorSamples(**{k: v for k, v in data["test"].columns.items() if k != "mask"})}, data.info)
    found = {}
    for name, saliency in (("grad-cam", GradCAM()), ("gradient", GuidedBackprop(rule="plain")), ("guided-grad-cam", GuidedGradCAM())):
        metrics = PointingGame(saliency=saliency, tolerance=0).evaluate(model, boxes).metrics
        found |= {name: metrics["pointing-accuracy"], "centre": metrics["centre-accuracy"]}
    return found


def mean(values) -> float:
    return statistics.fmean(values)


def test_the_classifier_knows_its_digits():
    for seed in SEEDS:
        model, data = classifier(seed)
        columns = data["test"].columns
        with torch.no_grad():
            best = model(columns["image"]).topk(2, dim=1).indices
        right = (best[:, :, None] == columns["labels"][:, None]).any(dim=2).float().mean()
        print(f"seed {seed}: both-digits precision {right:.3f}")
        assert right > 0.8


def test_grad_cam_points_better_than_the_centre_and_the_plain_gradient():
    results = [pointing(seed) for seed in SEEDS]
    print(results)
    for result in results:
        assert result["grad-cam"] > result["centre"]
        assert result["grad-cam"] > result["gradient"]


def test_asking_for_the_other_digit_moves_the_point_to_it():
    shares = []
    for seed in SEEDS:
        model, data = classifier(seed)
        columns = data["test"].columns
        points = peaks(grad_cam(model, columns["image"], columns["labels"]).maps)
        moved = pointing_hits(points, box_masks(columns["boxes"], SIDE, SIDE), 0).all(dim=1).float().mean().item()
        shares.append(moved)
    print("share of scenes in which both points are on their digit", shares)
    assert min(shares) > 0.5


def test_guided_grad_cam_stands_out_most_from_its_surroundings():
    rows = []
    for seed in SEEDS:
        model, data = classifier(seed)
        found = [
            BoxContrast(saliency=each).evaluate(model, data).metrics["box-contrast"]
            for each in (GuidedGradCAM(), GradCAM(), GuidedBackprop())
        ]
        rows.append(found)
    print("box contrast of guided grad-cam, grad-cam, guided backprop", rows)
    for guided_grad_cam, plain, guided in rows:
        assert guided_grad_cam > plain > guided


@pytest.mark.xfail(strict=True, reason="does not hold here: above 15 % of its maximum, a map of 8 x 8 positions is wider than a digit")
def test_boxes_from_grad_cam_err_less_than_boxes_from_the_gradient():
    rows = []
    for seed in SEEDS:
        model, data = classifier(seed)
        found = [
            SaliencyLocalization(saliency=each, top_k=2).evaluate(model, data).metrics for each in (GradCAM(), GuidedBackprop(rule="plain"))
        ]
        rows.append([each["top-1-localization-error"] for each in found])
    print("top-1 localisation error of grad-cam, gradient", rows)
    assert all(ours < theirs for ours, theirs in rows)


def test_a_classifier_with_a_shortcut_looks_less_at_the_digit():
    rows = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        labels = scenes(1500, False, seed, digits=1)["label"]
        telling, random = labels * torch.pi / 10, torch.randint(0, 10, labels.shape, generator=generator) * torch.pi / 10
        shortcut, honest = (trained(scenes(1500, False, seed, 1, angle), seed, 10, multi_label=False) for angle in (telling, random))
        test_labels = scenes(200, True, seed, digits=1)["label"]
        test = scenes(200, True, seed, 1, test_labels * torch.pi / 10)
        share = [
            mass_inside(grad_cam(each, test["image"], test["label"]).maps[:, 0], test["mask"] > 0).nanmean().item()
            for each in (shortcut, honest)
        ]
        rows.append(share)
    print("share of the map on the digit, with and without the shortcut", rows)
    assert all(with_shortcut < without for with_shortcut, without in rows)
