"""graftwork: graft what one trained network knows onto another task, domain, style or model.

Importing this imports no torch: every public name is loaded on first use.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
