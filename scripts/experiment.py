"""The experiments behind the tables in the bundles' docs, through ``monai.bundle run``.

    python scripts/experiment.py normal_guidance
    python scripts/experiment.py two_lesions --out FOLDER
    python scripts/experiment.py classic_mil --data FOLDER

Prints a Markdown table and writes it to FOLDER/NAME/table.md. What an earlier, interrupted call finished is kept.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

NAMES = (
    *("normal_guidance", "two_lesions", "lesion_sizes", "multi_label"),
    *("attention_stability", "levels", "classic_mil", "asmil_ablation"),
    *("tissue_scenes", "tile_probe", "active_learning", "active_learning_why", "methods", "ablations"),
)
OF_DATA = {"classic_mil", "asmil_ablation", "tile_probe", "methods"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, default=Path("experiments"), metavar="FOLDER", help="default: experiments")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help=f"of the public sets, for {', '.join(sorted(OF_DATA))}"
    )
    arguments = parser.parse_args()
    if (arguments.name in OF_DATA) != (arguments.data is not None):
        parser.error(f"--data FOLDER belongs to {', '.join(sorted(OF_DATA))}, which cannot do without")
    folder = arguments.out.resolve() / arguments.name
    experiment = importlib.import_module(f"experiments.{arguments.name}")
    table = experiment.run(folder, arguments.data) if arguments.data else experiment.run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
