"""NormGrad and the framework that it comes from: extract a layer's spatial contributions, aggregate them to a map (Rebuffi et al., 2020).

https://arxiv.org/abs/2004.02866. Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
