"""Contrastive learning on heterogeneous graphs with meta-path contexts and weighted negatives (MEOW, AdaMEOW; Yu et al., 2023).

Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
