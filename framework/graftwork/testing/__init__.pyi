from .racing import Race as Race
from .racing import median_seconds as median_seconds
from .racing import race as race

__all__ = ["Race", "median_seconds", "race"]
