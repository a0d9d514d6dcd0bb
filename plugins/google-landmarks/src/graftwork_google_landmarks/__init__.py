"""Google Landmarks Dataset v2 (Weyand et al., 2020), for graftwork and on its own: loader, scoring, clean set, baselines.

Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
