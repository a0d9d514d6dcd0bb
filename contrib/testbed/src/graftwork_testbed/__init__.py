"""The test bed: data sets of real pixels that need no network, from what scikit-learn and scikit-image ship in their wheels.

Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
