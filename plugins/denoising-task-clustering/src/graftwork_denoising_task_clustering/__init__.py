"""Denoising task clustering (ANT; Go et al., 2023), https://arxiv.org/abs/2306.00354, for graftwork and on its own.

Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
