"""Graph data sets: social networks, block models, graphons, an academic network, PyG's own data sets and plain tables.

They need `pip install "graftwork-testbed[graphs]"`, and importing this imports none of it: every public name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
