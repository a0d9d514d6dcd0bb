"""What a dual encoder is good for: finding images by texts and texts by images, and classes that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from graftwork.builtin.evaluators import CHUNK, classification_report
from graftwork.errors import DataError
from graftwork.interfaces import DualEncoder, TextEncoder
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Report, Table, evaluating, split_batches
from graftwork.run import Run

__all__ = ["ImageTextEncoder", "ImageTextRetrieval", "ZeroShotClassification", "negatives_ahead"]

Count = Annotated[int, Field(ge=1)]


@runtime_checkable
class ImageTextEncoder(DualEncoder, TextEncoder, Protocol):
    """A DualEncoder that also encodes texts as they are written."""


def negatives_ahead(queries: Tensor, gallery: Tensor, belongs: Tensor) -> Tensor:
    """How many of the gallery that do not belong to a query are more similar to it, by cosine, than the best that does.

    A query is a hit at K if fewer than K are; a tie counts for it.

    Args:
        queries: (Q, D).
        gallery: (N, D).
        belongs: (Q, N) bool, with at least one in each row.

    Returns:
        (Q,) long.
    """
    queries, gallery = normalize(queries, dim=1), normalize(gallery, dim=1)
    found = []
    step = max(1, CHUNK // len(gallery))
    for some, own in zip(torch.split(queries, step), torch.split(belongs, step), strict=True):
        similarity = some @ gallery.T
        best = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        found.append(((similarity > best) & ~own).sum(dim=1))
    return torch.cat(found)


class ImageTextRetrieval(Evaluator):
    """Recall@K from image to text and from text to image (Radford et al., 2021, section 3; Faghri et al., 2018, section 4).

    A caption is searched and searched for once, however many images have it, and belongs to them all; an image may have several.
    A query is a hit at K if any of what belongs to it is among the K most similar.

    Args:
        split: where to measure.
        captions: where captions are: "input_ids" with "attention_mask", or texts under "caption" or "text", one an image or a list.
        recall_at: the Ks of Recall@K.
        distinct: use only the first so many distinct captions, with all images that have one; by default all.
        batch_size: samples that the model sees at once.
    """

    needs = DualEncoder

    def __init__(
        self,
        split: Split = "test",
        captions: Literal["input_ids", "caption", "text"] = "input_ids",
        recall_at: Annotated[list[Count], Field(min_length=1)] = [1, 5, 10],  # noqa: B006 - read only
        distinct: Annotated[int, Field(ge=2)] | None = None,
        batch_size: Count = 128,
    ):
        if not recall_at or min(recall_at) < 1:
            raise ValueError(f"recall_at holds numbers from 1 on; found {recall_at}")
        if distinct is not None and distinct < 2:
            raise ValueError(f"distinct is at least 2; found {distinct}")
        self.split, self.captions, self.recall_at, self.distinct, self.batch_size = split, captions, recall_at, distinct, batch_size
        self.keys = ("image", "input_ids", "attention_mask") if captions == "input_ids" else ("image", captions)
        if captions != "input_ids":
            self.needs = ImageTextEncoder

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics image-to-text-recall@K and text-to-image-recall@K for each K, and rsum, their sum in percent; a table of ranks.

        Raises:
            DataError: if the split has fewer distinct captions than are asked for, or fewer than two.
        """
        with evaluating(model):
            images, texts, belongs = self._embeddings(model, data)
        ahead = {"image-to-text": negatives_ahead(images, texts, belongs), "text-to-image": negatives_ahead(texts, images, belongs.T)}
        metrics = {f"{way}-recall@{k}": (ranks < k).double().mean().item() for way, ranks in ahead.items() for k in self.recall_at}
        metrics["rsum"] = 100 * sum(metrics.values())
        rows = [[way, len(ranks), int(ranks.median()) + 1, float(ranks.double().mean()) + 1] for way, ranks in ahead.items()]
        caption = f"Where the first that belongs to a query of {self.split} comes; 1 is best."
        return Report(metrics, {"ranks": Table(["direction", "queries", "median rank", "mean rank"], rows, caption)})

    def _embeddings(self, model: Any, data: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, D), distinct captions (C, D) in the order in which they come first, and which belong together (N, C) bool."""
        images, texts, places = [], [], []
        known: dict[Hashable, int] = {}
        for batch in split_batches(data, self.split, model, batch_size=self.batch_size):
            captions = _captions(batch, self.captions)
            fresh: dict[Hashable, int] = {}
            for at, mine in enumerate(captions):
                for one in mine:
                    if one not in known and len(known) < (self.distinct or math.inf):
                        known[one], fresh[one] = len(known), at
            if fresh:
                texts.append(self._encode(model, batch, fresh))
            having = [[known[one] for one in mine if one in known] for mine in captions]
            kept = [at for at, mine in enumerate(having) if mine]
            if kept:
                images.append(model.encode_image(batch["image"][torch.tensor(kept, device=batch["image"].device)]).float())
                places += [having[at] for at in kept]
        if len(known) < (self.distinct or 2):
            raise DataError(f'split "{self.split}" has {len(known)} distinct captions; {self.distinct or 2} are needed')
        belongs = torch.zeros(len(places), len(known), dtype=torch.bool)
        belongs[[at for at, mine in enumerate(places) for _ in mine], [place for mine in places for place in mine]] = True
        return torch.cat(images), torch.cat(texts), belongs.to(images[0].device)

    def _encode(self, model: Any, batch: Batch, captions: dict[Hashable, int]) -> Tensor:
        """Captions of a batch, each with the place of a sample that has it, to (C, D) float32."""
        if self.captions != "input_ids":
            return model.encode(list(captions)).float()  # type: ignore[no-any-return]
        rows = torch.tensor(list(captions.values()), device=batch["input_ids"].device)
        return model.encode_text(batch["input_ids"][rows], batch["attention_mask"][rows]).float()  # type: ignore[no-any-return]


def _captions(batch: Batch, key: str) -> list[list[Hashable]]:
    """Each sample's captions: texts, or tokens without padding."""
    if key != "input_ids":
        return [[each] if isinstance(each, str) else list(each) for each in batch[key]]
    masks = batch["attention_mask"].bool().cpu()
    return [[tuple(ids[mask].tolist())] for ids, mask in zip(batch["input_ids"].cpu(), masks, strict=True)]


class ZeroShotClassification(Evaluator):
    """Accuracy of the class whose description is most similar to the image (Radford et al., 2021, section 3.1).

    A class is embedded as the mean of its normalised prompts' embeddings, one a template, normalised again (section 3.1.4).

    Args:
        split: where to measure.
        classes: what the classes are called in prompts, in the order of the labels; the dataset's names by default.
        templates: each with {} where the class goes.
        top_k: also report how often the label is among the k most similar classes.
        limit: read the first so many samples only.
        batch_size: samples, or prompts, that the model sees at once.
    """

    keys = ("image", "label")
    needs = ImageTextEncoder

    def __init__(
        self,
        split: Split = "test",
        classes: Annotated[list[str], Field(min_length=2)] | None = None,
        templates: Annotated[list[str], Field(min_length=1)] = ["a photo of a {}."],  # noqa: B006 - read only
        top_k: Count = 1,
        limit: Count | None = None,
        batch_size: Count = 128,
    ):
        if not templates or (plain := [each for each in templates if "{}" not in each]):
            raise ValueError(f"templates hold {{}} where the class goes; found {plain if templates else templates}")
        if classes is not None and len(classes) < 2:
            raise ValueError(f"classes are at least two; found {classes}")
        self.split, self.classes, self.templates, self.top_k = split, classes, templates, top_k
        self.limit, self.batch_size = limit, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics zero-shot-accuracy, zero-shot-macro-accuracy and, for k above 1, zero-shot-top-k-accuracy.

        Raises:
            DataError: if the split is empty, no classes are known, a label has none, or k exceeds their number.
        """
        classes = list(self.classes or data.info.classes)
        if len(classes) < 2:
            raise DataError("the dataset names no classes: say what they are called, with classes")
        with evaluating(model):
            described = self._describe(model, classes)
            batches = split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size)
            found = [(normalize(model.encode_image(batch["image"]).float(), dim=1) @ described.T, batch["label"]) for batch in batches]
        if not found:
            raise DataError(f'split "{self.split}" is empty')
        similarity, labels = (torch.cat(side) for side in zip(*found, strict=True))
        return classification_report(similarity, labels, classes, self.split, self.top_k, "zero-shot-")

    def _describe(self, model: Any, classes: Sequence[str]) -> Tensor:
        """Each class's embedding: (C, D) of length 1."""
        prompts = [template.replace("{}", name) for name in classes for template in self.templates]
        encoded = [model.encode(prompts[at : at + self.batch_size]).float() for at in range(0, len(prompts), self.batch_size)]
        each = normalize(torch.cat(encoded), dim=1).view(len(classes), len(self.templates), -1)
        return normalize(each.mean(dim=1), dim=1)
