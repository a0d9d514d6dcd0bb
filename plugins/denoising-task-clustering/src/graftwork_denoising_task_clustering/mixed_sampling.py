"""Sampling with one denoiser inside an interval of noise levels and another outside (Go et al., 2023, section 3)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graftwork import Batch, DataError
from graftwork.interfaces import device_of
from graftwork.kinds.evaluator import evaluating
from graftwork_denoising_task_clustering.denoisers import Denoiser
from graftwork_denoising_task_clustering.noise_levels import NoiseLevels

__all__ = ["draw", "frechet_distance", "mixed_denoiser"]


@contextmanager
def mixed_denoiser(network: nn.Module, experts: Mapping[tuple[int, int], nn.Module], levels: NoiseLevels) -> Iterator[None]:
    """Inside, a call of `network` at a timestep in [start, end) is answered by that interval's expert; afterwards nothing is left.

    Args:
        network: of the pipeline that samples.
        experts: (start, end) -> network of the same class.
        levels: of the pipeline's scheduler.
    """
    own = network.forward
    signature = inspect.signature(own)

    def forward(*args: Any, **kwargs: Any) -> Any:
        time = signature.bind(*args, **kwargs).arguments["timestep"]
        timestep = levels.timestep_of(time.flatten()[0] if isinstance(time, Tensor) else time)
        expert = next((expert for (start, end), expert in experts.items() if start <= timestep < end), None)
        return own(*args, **kwargs) if expert is None or expert is network else expert(*args, **kwargs)

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


def draw(denoiser: Denoiser, batch: Batch, *, steps: int, guidance_scale: float, seed: int) -> Tensor:
    """Pictures like a batch's samples: as many, of its captions or labels, each from noise of its own seed.

    Args:
        denoiser: of the pipeline.
        batch: collated samples.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance; 1 is none.
        seed: of the first picture's noise; the next has the next.

    Returns:
        (B, 3, H, W) or (B, 1, H, W) float32 in [0, 1], on the pipeline's device.
    """
    pipeline = denoiser.pipeline
    known = inspect.signature(pipeline.__call__).parameters
    count, device = len(next(iter(batch.values()))), device_of(denoiser.network)
    asked = {"num_inference_steps": steps, "output_type": "np", **denoiser.asked(batch)}
    asked["generator"] = [torch.Generator(device).manual_seed(seed + place) for place in range(count)]
    if "true_cfg_scale" in known:
        asked |= {"true_cfg_scale": guidance_scale, "negative_prompt": [""] * count} if guidance_scale > 1 else {}
    elif "guidance_scale" in known:
        asked["guidance_scale"] = guidance_scale
    with ExitStack() as stack:
        for component in pipeline.components.values():
            stack.enter_context(evaluating(component))
        images = torch.as_tensor(pipeline(**asked).images, device=device)
    return images.movedim(-1, 1).float().clamp(0, 1)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of features as normal distributions (Heusel et al., 2017, eq. 6), in float64.

    Args:
        first: (n, d), n at least 2.
        second: (m, d).

    Raises:
        DataError: if a set has fewer than two rows, or a feature is not finite.
    """
    if min(len(first), len(second)) < 2 or not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise DataError(f"a Fréchet distance needs two sets of at least 2 finite features; found {len(first)} and {len(second)}")
    one, two = first.double(), second.double()
    covariances = [torch.cov(part.T).reshape(part.shape[1], part.shape[1]) for part in (one, two)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()  # trace of the product's square root
    apart = (one.mean(0) - two.mean(0)).square().sum()
    return float((apart + covariances[0].trace() + covariances[1].trace() - 2 * shared).clamp(min=0))
