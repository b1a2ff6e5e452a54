"""Run every bundle where nothing but its declared packages is installed, as the model zoo does.

    python scripts/prove_environments.py --slides SLIDES --scans SCANS [BUNDLE ...]

Each bundle gets a new environment of exactly MONAI, PyTorch, NumPy and ``required_packages_version`` of its metadata
(one for all bundles that declare the same), and a copy with ``monai_mil`` inside. There the raw-input command of
``monai.bundle``, ``monai-mil predict``, and the former with a TorchScript export in place of the network must make the
same predictions. An environment takes two minutes and 2 GB, and is removed again; it needs a package index.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import tempfile
import venv
from itertools import groupby
from pathlib import Path

from export_zoo import ROOT, export

from monai_mil.runs import Bundle, BundleRun, predict_run

SAME = 1e-5


def declared(name: str) -> list[str]:
    """What pip is asked for, as the zoo's checks ask."""
    metadata = json.loads((ROOT / "bundles" / name / "configs" / "metadata.json").read_text())
    basis = {package: metadata[f"{key}_version"] for package, key in (("monai", "monai"), ("torch", "pytorch"))}
    basis["numpy"] = metadata["numpy_version"]
    return [f"{package}=={version}" for package, version in (basis | metadata["required_packages_version"]).items()]


def make_environment(folder: Path, packages: list[str]) -> Path:
    """A new virtual environment of these packages; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    return python


def prove(python: Path, name: str, raw: Path, work: Path) -> None:
    """Predict in three ways within an environment, and compare."""
    bundle = Bundle(export(name, work / "bundles"))
    program = bundle.root / "models" / "model.ts"
    places = {way: work / name / way for way in ("bundle", "program", "predict")}
    one = [raw.resolve()]
    _run(python, bundle, *_words(predict_run(bundle, one, places["bundle"])))
    verb = ["-m", "monai.bundle", "ckpt_export", "--net_id", "network_def", "--filepath", str(program)]
    verb += ["--ckpt_file", str(bundle.weights), "--meta_file", str(bundle.config("metadata"))]
    _run(python, bundle, *verb, "--config_file", str(bundle.config("inference")))
    settings = {"network_def": f"$torch.jit.load({str(program)!r})"}
    _run(python, bundle, *_words(predict_run(bundle, one, places["program"], settings=settings)))
    _run(python, bundle, "-m", "monai_mil.cli", "predict", bundle.root, *one, "--out", places["predict"], "--trust")
    expected = _probabilities(places["bundle"])
    for way in ("program", "predict"):
        found = _probabilities(places[way])
        if found.keys() != expected.keys() or any(abs(found[key] - expected[key]) > SAME for key in expected):
            raise SystemExit(f"{name}: {way} says {found}, monai.bundle says {expected}")
    print(f"{name}: {expected}", flush=True)


def _words(run: BundleRun) -> list[str]:
    return shlex.split(run.line)[1:]


def _run(python: Path, bundle: Bundle, *words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(bundle.root), "PYTHONNOUSERSITE": "1"}
    command = [str(python), *map(str, words)]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


def _probabilities(out: Path) -> dict[tuple[str, str], float]:
    with (out / "predictions.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    case = next(iter(rows[0]))
    return {(row[case], key): float(row[key]) for row in rows for key in row if key.startswith("prob")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(path.parents[1].name for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
    parser.add_argument("names", nargs="*", default=every, metavar="BUNDLE", help="which bundles; all of them")
    parser.add_argument("--slides", type=Path, required=True, help="a slide, or a folder of them")
    parser.add_argument("--scans", type=Path, required=True, help="a CT series, or a folder of them")
    arguments = parser.parse_args()
    inputs = {"slides": arguments.slides, "scans": arguments.scans}
    names = sorted(arguments.names, key=declared)
    for packages, group in groupby(names, key=declared):
        with tempfile.TemporaryDirectory(prefix="monai-mil-") as folder:
            python = make_environment(Path(folder, "venv"), packages)
            for name in group:
                reads = Bundle(ROOT / "bundles" / name).reads
                prove(python, name, inputs[reads], Path(folder))


if __name__ == "__main__":
    main()
