"""Transfer to Revisited Oxford and Paris: embed the cropped queries and the index, rank, score by difficulty."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from graftwork import DataError, Dataset, Evaluator, Figure, Report, Table
from graftwork.builtin.datasets import MOST, Pixels, read_image
from graftwork.run import Run
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.descriptors import nearest_samples
from graftwork_google_landmarks.figures import draw_retrieved
from graftwork_google_landmarks.ground_truth import need_model
from graftwork_google_landmarks.revisited import RevisitedGroundTruth, read_ground_truth, revisited_scores

__all__ = ["RevisitedImages", "RevisitedRetrieval"]

Count = Annotated[int, Field(ge=1)]


class RevisitedImages:
    """The images of an index, or the cropped ones of queries, as samples.

    An image is shrunk so that its longer side has `max_side` pixels, never enlarged. A query is cropped to its box first, and then
    shrunk by the factor that its whole image would have been.

    Args:
        folder: with NAME.jpg.
        names: of the images.
        boxes: (x1, y1, x2, y2) for each; none crops none.
        max_side: pixels of the longer side.
        max_pixels: an image with more is refused before it is decoded.
    """

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...],
        boxes: tuple[tuple[float, float, float, float], ...] | None = None,
        max_side: int = 1024,
        max_pixels: int = MOST,
    ):
        self.folder, self.names, self.boxes, self.max_side, self.max_pixels = folder, names, boxes, max_side, max_pixels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.folder / f"{self.names[index]}.jpg"
        if not path.is_file():
            raise DataError(f"revisited-retrieval: there is no image {path}")
        image = read_image(path, str(path), Pixels(None, 3, self.max_pixels))
        longest = max(image.shape[1:])
        if self.boxes is not None:
            image = self._cropped(image, self.boxes[index], path)
        return {"image": self._shrunk(image, min(1.0, self.max_side / longest)), "image_id": self.names[index]}

    @staticmethod
    def _cropped(image: Tensor, box: tuple[float, float, float, float], path: Path) -> Tensor:
        x1, y1, x2, y2 = (round(side) for side in box)
        crop = image[:, max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)]
        if not crop.numel():
            raise DataError(f"revisited-retrieval: the box {box} of {path} lies outside the image of {tuple(image.shape[1:])}")
        return crop

    @staticmethod
    def _shrunk(image: Tensor, factor: float) -> Tensor:
        if factor == 1:
            return image
        size = [max(1, round(side * factor)) for side in image.shape[1:]]
        return interpolate(image[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)


class RevisitedRetrieval(Evaluator):
    """mAP and mP@k of the setups Easy, Medium and Hard on ROxford or RParis (Radenovic et al., 2018).

    It reads its own files: the stage's data set is not looked at, and need not be there.

    Args:
        gnd: gnd_roxford5k.mat or gnd_rparis6k.mat, or the same as JSON; a .pkl is refused.
        images: folder with the .jpg files.
        max_side: pixels of the longer side that images are shrunk to.
        crop_queries: whether queries are cropped to their boxes, as the protocol wants.
        ranks: the ks of mP@k.
        batch_size: images read at once; they are embedded one by one, since they differ in size.
        workers: processes that read images.
        pictures: queries that the figure shows.

    Raises:
        ValueError: if a parameter is out of range.
    """

    def __init__(
        self,
        gnd: str,
        images: str,
        max_side: Count = 1024,
        crop_queries: bool = True,
        ranks: list[Count] = [1, 5, 10],  # noqa: B006 - read only
        batch_size: Count = 16,
        workers: Annotated[int, Field(ge=0)] = 0,
        pictures: Annotated[int, Field(ge=0)] = 6,
    ):
        at_least(1, max_side=max_side, batch_size=batch_size, ranks=min(ranks, default=1))
        at_least(0, workers=workers, pictures=pictures)
        self.gnd, self.images = Path(gnd).expanduser(), Path(images).expanduser()
        self.max_side, self.crop_queries, self.ranks = max_side, crop_queries, ranks
        self.batch_size, self.workers, self.pictures = batch_size, workers, pictures

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics easy/map, easy/precision@1, ..., hard/precision@10.

        Raises:
            DataError: if the ground truth or an image cannot be read.
            InterfaceError: if the model gives no descriptors.
        """
        need_model(model, "revisited-retrieval")
        truth = read_ground_truth(self.gnd)
        boxes = tuple(query.box for query in truth.queries) if self.crop_queries else None
        queries = RevisitedImages(self.images, tuple(query.name for query in truth.queries), boxes, self.max_side)
        index = RevisitedImages(self.images, truth.index, None, self.max_side)
        near = nearest_samples(model, queries, None, index, len(index), batch_size=self.batch_size, workers=self.workers)
        ranking = near.indices.numpy()
        metrics = revisited_scores(ranking, truth, self.ranks)
        rows = [
            [setup, *(metrics[name] for name in metrics if name.startswith(f"{setup}/"))]
            for setup in ("easy", "medium", "hard")
            if f"{setup}/map" in metrics
        ]
        table = Table(["setup", "mAP", *(f"mP@{k}" for k in self.ranks)], rows, "Means over the queries that have a right answer.")
        figures = {"retrieved": self._draw(queries, index, truth, ranking)} if self.pictures else {}
        return Report(metrics, {"setups": table}, figures)

    def _draw(self, queries: RevisitedImages, index: RevisitedImages, truth: RevisitedGroundTruth, ranking: Any) -> Figure:
        chosen = np.unique(np.linspace(0, len(queries) - 1, min(self.pictures, len(queries))).astype(int)).tolist()
        shown: list[Tensor] = [_thumbnail(queries[at]["image"]) for at in chosen]
        found = []
        for at in chosen:
            one = truth.queries[at]
            right, junk = set(np.concatenate([one.easy, one.hard]).tolist()), set(one.junk.tolist())
            best = [position for position in ranking[at].tolist() if position not in junk][:6]
            found.append([(_thumbnail(index[position]["image"]), position in right, "") for position in best])
        figure = draw_retrieved(shown, found, [truth.queries[at].name[:14] for at in chosen])
        return Figure(figure, "Queries (left) and the first of the index, junk left out; green frames are easy or hard answers.")


def _thumbnail(image: Tensor) -> Tensor:
    factor = min(1.0, 128 / max(image.shape[1:]))
    return RevisitedImages._shrunk(image, factor) if torch.is_tensor(image) else image
