"""Write framework/graftwork/catalogue.json: kind -> component -> the distribution of this repository that provides it.

Run it after a component was added; `--check` exits 1 when the file is behind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from graftwork.component import KINDS
from graftwork.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "framework" / "graftwork" / "catalogue.json"


def catalogue() -> str:
    """The catalogue over the plugins and contributions of this checkout that are installed."""
    mine = {f"graftwork-{path.parent.name}" for folder in ("plugins", "contrib") for path in (ROOT / folder).glob("*/pyproject.toml")}
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for one in Registry():
        if one.distribution in mine:
            found[one.kind][one.name] = one.distribution
    return json.dumps({kind: names for kind, names in found.items() if names}, indent=1) + "\n"


def main() -> int:
    """Write or check."""
    text = catalogue()
    if "--check" not in sys.argv:
        CATALOGUE.write_text(text)
        return 0
    if CATALOGUE.read_text() != text:
        print(f"{CATALOGUE.relative_to(ROOT)} is behind what the plugins register: run make catalogue", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
