"""Does a text-to-image pipeline draw what it was asked for? Independent classifiers look at what it draws."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Backbone, ConfigError, Dataset, Evaluator, Figure, Report, Table
from graftwork.interfaces import DiffusionPipeline, classify, device_of
from graftwork.kinds.evaluator import evaluating
from graftwork_testbed.scenes.grammar import Thing
from graftwork_testbed.scenes.vocabulary import COLOURS, DIGITS

__all__ = ["SceneCheck", "draw_prompts"]

Count = Annotated[int, Field(ge=1)]


def draw_prompts(pipeline: Any, prompts: Sequence[str], guidance_scale: float, steps: int, seed: int, size: int = 64) -> Tensor:
    """Pictures of prompts, each from noise of its own seed, whichever way the pipeline takes classifier-free guidance.

    Args:
        pipeline: a diffusers pipeline of text to images; one whose call has `true_cfg_scale` is guided by that and an empty
            negative prompt, any other by `guidance_scale`.
        prompts: what to draw.
        guidance_scale: 1 is no guidance.
        steps: of the sampler.
        seed: of the first picture; the next has the next.
        size: height and width in pixels.

    Returns:
        (N, 3, size, size) float in [0, 1], on the CPU.
    """
    known = inspect.signature(pipeline.__call__).parameters
    device, drawn = device_of(pipeline), []
    for start in range(0, len(prompts), 40):
        part = list(prompts[start : start + 40])
        guided = {"guidance_scale": guidance_scale}
        if "true_cfg_scale" in known:
            guided = {"true_cfg_scale": guidance_scale, "negative_prompt": [""] * len(part)}  # type: ignore[dict-item]
        noise = [torch.Generator(device).manual_seed(seed + start + place) for place in range(len(part))]
        with torch.no_grad():
            output = pipeline(prompt=part, num_inference_steps=steps, generator=noise, output_type="pt", height=size, width=size, **guided)
        drawn.append(output.images.float().cpu().clamp(0, 1))
    return torch.cat(drawn)


class SceneCheck(Evaluator):
    """How often a text-to-image pipeline draws the digit, and the colour, that it was asked for.

    Every one of the 80 captions "a COLOUR DIGIT" is drawn as often as asked for, and two classifiers that had no part in the
    pipeline's training say what they see.

    Args:
        digits: a classifier of ten digits.
        colours: a classifier of the eight colours, in the order of `scenes.vocabulary.COLOURS`.
        repeats: pictures of each caption.
        guidance_scale: of classifier-free guidance.
        steps: of the sampler.
        size: of the pictures in pixels.
    """

    needs = DiffusionPipeline

    def __init__(
        self,
        digits: Backbone,
        colours: Backbone,
        repeats: Count = 4,
        guidance_scale: Annotated[float, Field(ge=0)] = 5.0,
        steps: Count = 30,
        size: Annotated[int, Field(ge=16)] = 64,
    ):
        for name, model, wanted in (("digits", digits, len(DIGITS)), ("colours", colours, len(COLOURS))):
            offered = getattr(model, "num_classes", None)
            if offered != wanted:
                raise ConfigError(f"{name} must be a classifier of {wanted} classes; {type(model).__name__} has {offered}")
        self.digits, self.colours = digits, colours
        self.repeats, self.guidance_scale, self.steps, self.size = repeats, guidance_scale, steps, size

    def evaluate(self, model: Any, data: Dataset, run: Any = None) -> Report:
        """Metrics digit-accuracy, colour-accuracy and both-accuracy; a table of the digits; 64 pictures."""
        asked = list(itertools.product(range(len(DIGITS)), range(len(COLOURS)))) * self.repeats
        hues = tuple(COLOURS)
        prompts = [str(Thing(digit, hues[colour])) for digit, colour in asked]
        images = draw_prompts(model, prompts, self.guidance_scale, self.steps, getattr(run, "seed", 0) * 100_003, self.size)
        digit, colour = torch.tensor(asked).unbind(1)
        right = [self._seen(network, images) == wanted for network, wanted in ((self.digits, digit), (self.colours, colour))]
        both = right[0] & right[1]
        metrics = {
            "digit-accuracy": right[0].float().mean().item(),
            "colour-accuracy": right[1].float().mean().item(),
            "both-accuracy": both.float().mean().item(),
        }
        rows = [
            [DIGITS[number], *(share[digit == number].float().mean().item() for share in (*right, both))] for number in range(len(DIGITS))
        ]
        table = Table(["digit", "digit right", "colour right", "both"], rows, "What the classifiers found, a captioned digit a row.")
        shown = torch.arange(80)[torch.tensor([number % 10 < 8 for number in range(80)])][:64]
        caption = f"64 captions at guidance {self.guidance_scale:g}, {self.steps} steps; a red frame: digit or colour not found."
        figure = Figure(_grid(images[shown], [prompts[i] for i in shown.tolist()], both[shown].tolist()), caption)
        return Report(metrics, {"digits": table}, {"samples": figure})

    def _seen(self, network: Any, images: Tensor) -> Tensor:
        device = device_of(network)
        with evaluating(network):
            return torch.cat([classify(network, {"image": part.to(device)}).argmax(1).cpu() for part in images.split(256)])


def _grid(images: Tensor, prompts: Sequence[str], right: Sequence[bool]) -> Any:
    """Pictures with their prompts below, eight in a row."""
    from matplotlib.figure import Figure as Canvas

    rows = math.ceil(len(images) / 8)
    canvas = Canvas(figsize=(8 * 1.05, rows * 1.25), layout="constrained")
    for axes, image, prompt, fine in zip(canvas.subplots(rows, 8, squeeze=False).flat, images, prompts, right, strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(prompt, fontsize=6.5, y=-0.2)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(visible=not fine, color="#d1495b", linewidth=2)
    return canvas
