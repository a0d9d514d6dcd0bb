"""Domain-adversarial training of neural networks (Ganin et al., 2016), https://arxiv.org/abs/1505.07818.

Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
