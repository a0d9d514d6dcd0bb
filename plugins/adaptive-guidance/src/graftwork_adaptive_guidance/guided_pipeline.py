"""A pipeline together with a guidance, to be called, measured and saved as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graftwork import Guidance, InterfaceError
from graftwork.interfaces import DiffusionPipeline

__all__ = ["GuidedPipeline"]

POLICY = "guidance_policy.json"


class GuidedPipeline:
    """Calls a diffusers pipeline under a guidance; whatever takes a pipeline takes this.

    Args:
        pipeline: of diffusers.
        guidance: attached during each call.

    Raises:
        InterfaceError: if the pipeline is guided by one of these already.
    """

    def __init__(self, pipeline: DiffusionPipeline, guidance: Guidance):
        if isinstance(pipeline, GuidedPipeline):
            raise InterfaceError("the pipeline carries a guidance already: build from the plain one")
        self.pipeline: Any = pipeline
        self.guidance = guidance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline; arguments and output are its own."""
        with self.guidance.attach(self.pipeline):
            return self.pipeline(*args, **kwargs)

    @property
    def scheduler(self) -> Any:
        """The pipeline's."""
        return self.pipeline.scheduler

    @property
    def components(self) -> dict[str, Any]:
        """The pipeline's."""
        return self.pipeline.components  # type: ignore[no-any-return]

    @property
    def device(self) -> Any:
        """The pipeline's."""
        return self.pipeline.device

    def to(self, *args: Any, **kwargs: Any) -> GuidedPipeline:
        """Move the pipeline."""
        self.pipeline.to(*args, **kwargs)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the pipeline in its own format, and a policy beside it as guidance_policy.json."""
        self.pipeline.save_pretrained(folder)
        policy = getattr(self.guidance, "policy", None)
        if policy is not None:
            (Path(folder) / POLICY).write_text(json.dumps({"policy": [str(one) for one in policy]}, indent=1))
