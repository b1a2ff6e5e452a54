"""Copy a bundle with the package inside, so that it runs where monai-mil is not installed.

    python scripts/export_zoo.py mil_baselines OUT      # makes OUT/mil_baselines

The model zoo installs what ``required_packages_version`` lists and puts the bundle's folder first on ``sys.path``; the
copy of ``monai_mil`` there makes the unchanged configs work.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", "eval", "runs", "verify_model.ts", "checkpoints")


def export(name: str, out: Path) -> Path:
    bundle = ROOT / "bundles" / name
    if not (bundle / "configs" / "metadata.json").exists():
        known = sorted(path.parents[1].name for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
        raise SystemExit(f"no bundle '{name}'; there are: {', '.join(known)}")
    target = out / name
    if target.exists():
        raise SystemExit(f"'{target}' exists; remove it or choose another folder")
    shutil.copytree(bundle, target, ignore=_NOT_SHIPPED)
    shutil.copytree(ROOT / "monai_mil", target / "monai_mil", ignore=shutil.ignore_patterns("__pycache__"))
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the bundle's folder under bundles/")
    parser.add_argument("out", type=Path, help="where the copy goes")
    arguments = parser.parse_args()
    print(export(arguments.name, arguments.out))
