"""Adaptive Guidance (Castillo et al., 2025), https://arxiv.org/abs/2312.12487, for graftwork and for diffusers pipelines on their own.

Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
