from .racing import Race as Race
from .racing import race as race

__all__ = ["Race", "race"]
