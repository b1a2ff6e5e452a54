"""One bright token, looked for in every file: all must say that it lies at the same place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_mil.heatmaps import (
    Heatmap,
    ScanHeatmap,
    assemble,
    export_geojson,
    export_mask,
    export_nifti,
    export_nifti_mask,
    export_png,
    export_tiff,
    stitch,
)
from monai_mil.heatmaps.montage import draw_montage
from monai_mil.savers.slice_tables import scan_row
from monai_mil.scans import Depth, LungField, Scan, ScanFrame, Window
from monai_mil.slides import open_truth
from tests.heatmaps.examples import frame

SIZE = (6003, 4501)


def planted_slide(step: float) -> tuple[Heatmap, np.ndarray]:
    """A grid of tiles with one bright token, and the token's centre in level-0 pixels."""
    columns, rows = (int(np.ceil(side / step)) for side in SIZE)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    scores = np.full((len(grid), 14, 14), 0.05, np.float32)
    scores[2 * columns + 3, 4, 11] = 0.95
    heatmap = assemble(scores, np.floor(grid * step + 0.5), frame(SIZE, step, mpp=0.25), threshold=0.4)
    return heatmap, np.array([3 * step + 11.5 * step / 14, 2 * step + 4.5 * step / 14])


def middle(weights: np.ndarray) -> np.ndarray:
    """The centre of gravity in pixels, x first; a pixel's own centre is at a half."""
    across = [weights.sum(axis=axis) for axis in (0, 1)]
    return np.array([(np.arange(len(sums)) + 0.5) @ sums for sums in across]) / weights.sum()


@pytest.mark.parametrize("step", [512.0, 511.37, 682.4])
def test_every_file_of_a_slide_has_the_token_at_the_same_level_0_place(tmp_path: Path, step: float) -> None:
    heatmap, place = planted_slide(step)
    token = step / 14
    loaded = Heatmap.load(heatmap.save(tmp_path / "a.h5"))
    canvas = stitch(loaded)
    row, column = np.argwhere(canvas.values > 0.4)[0]
    found = {"h5": np.array(canvas.origin) + (np.array([column, row]) + 0.5) * canvas.step}
    for name, export in (("tiff", export_tiff), ("mask", export_mask)):
        with tifffile.TiffFile(export(loaded, tmp_path / f"{name}.tif")) as tiff:
            page = tiff.pages[0]
            downsample = json.loads(page.description)["downsample"]
            ratio = page.tags["XResolution"].value
            assert 1e4 * ratio[1] / ratio[0] == pytest.approx(0.25 * downsample)
            pixels = page.asarray()[..., 1].astype(float)
        pixels[int(SIZE[1] / downsample) :], pixels[:, int(SIZE[0] / downsample) :] = 0, 0
        bright = np.where(pixels < 254, pixels, 0) if name == "tiff" else pixels
        found[name] = middle(np.clip(bright - 100, 0, None)) * downsample
    truth = open_truth(tmp_path / "mask.tif", level0_size=SIZE).window(0, 0, *SIZE, (SIZE[1] // 4, SIZE[0] // 4))
    found["mask as ground truth"] = middle(truth.astype(float)) * (SIZE[0] / truth.shape[1], SIZE[1] / truth.shape[0])
    features = json.loads(export_geojson(loaded, tmp_path / "a.geojson").read_text())["features"]
    (region,) = (one for one in features if one["properties"]["objectType"] == "annotation")
    found["geojson"] = np.mean(region["geometry"]["coordinates"][0][:-1], axis=0)
    tiles = (one for one in features if one is not region)
    best = max(tiles, key=lambda one: one["properties"]["measurements"][heatmap.name])
    corners = np.array(best["geometry"]["coordinates"][0])
    assert (corners.min(axis=0) < place).all()
    assert (place < corners.max(axis=0)).all()
    picture = np.asarray(Image.open(export_png(loaded, tmp_path / "a.png", canvas_max=3000)).convert("RGB")).astype(int)
    red = (picture == (214, 39, 40)).all(axis=2)
    left, top = (np.flatnonzero(red.any(axis=axis)) for axis in (0, 1))
    frame_left, frame_top = (round(50 * n) for n in (1.5, 5))  # of a picture of 3000 px, 50 px a unit
    centre = np.array([(left[0] + left[-1] + 1) / 2 - frame_left, (top[0] + top[-1] + 1) / 2 - frame_top])
    found["png"] = centre * SIZE[0] / 3000
    for name, at in found.items():
        assert np.abs(at - place).max() < 0.2 * token, (name, at, place)


ORIENTATIONS = {
    "axial": [[1, 0, 0], [0, 1, 0]],
    "prone": [[-1, 0, 0], [0, -1, 0]],
    "coronal": [[1, 0, 0], [0, 0, -1]],
    "sagittal": [[0, 1, 0], [0, 0, -1]],
    "oblique": [[0.8, 0.6, 0], [-0.6, 0.8, 0]],
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("size", [(100, 140), (140, 100)])
def test_every_file_of_a_scan_has_the_cell_at_the_same_place_in_the_patient(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    import nibabel

    n, orientation = 60, np.array(ORIENTATIONS[name], float)
    normal = np.cross(*orientation)
    first = np.array([-50.0, -40.0, 10.0])
    origins = first + 2.5 * np.arange(n)[:, None] * normal
    uids = tuple(f"1.2.{index}" for index in range(n))
    scan_frame = ScanFrame("scan", None, size, (1.6, 1.6), orientation, origins, uids, (1,) * n)
    layers = np.full((32, 37, 37), 0.02, np.float32)
    layers[20, 22, 15] = 0.9
    lungs = LungField.pack(np.ones((n, *size), bool), "threshold")
    saved = ScanHeatmap(scan_frame, Depth(32).restore(layers, n), "heatmap", threshold=0.4, lungs=lungs)
    heatmap = ScanHeatmap.load(saved.save(tmp_path / "a.h5"))
    cell = max(size) / 37
    row, column = ((at + 0.5) * cell - (max(size) - side) // 2 - 0.5 for at, side in zip((22, 15), size, strict=True))
    slice_place = 20.5 * n / 32 - 0.5
    place = first + 2.5 * slice_place * normal + 1.6 * (column * orientation[0] + row * orientation[1])
    for export, floor in ((export_nifti, 0.1), (export_nifti_mask, 0.0)):
        image = nibabel.load(export(heatmap, tmp_path / f"{export.__name__}.nii.gz"))
        weight = np.clip(np.asarray(image.dataobj, float) - floor, 0, None)
        index = [(places * weight).sum() / weight.sum() for places in np.indices(weight.shape)]
        found = (image.affine @ [*index, 1])[:3] * (-1, -1, 1)
        assert np.abs(found - place).max() < 0.6, (export.__name__, found, place)
    told = scan_row(heatmap, None, "scan")
    assert abs(float(told["highest_position_mm"]) - (first @ normal + 2.5 * slice_place)) < 1.3
    assert told["highest_sop_uid"] == f"1.2.{round(slice_place)}"
    air = np.full((n, *size), -1000, np.int16)
    body = air.copy()
    body[heatmap.peak, round(row) - 2 : round(row) + 3, round(column) - 2 : round(column) + 3] = 200
    bare = replace(heatmap, threshold=np.inf)
    empty, shown, marked = (
        draw_montage(drawn, Scan(scan_frame, hu), window=Window(-400, 1200), slices=1, opacity=opacity)[0].astype(int)
        for drawn, hu, opacity in ((bare, air, 0.0), (bare, body, 0.0), (heatmap, air, 0.6))
    )
    seen, said = (middle((np.abs(picture - empty).sum(axis=2) > 30).astype(float)) for picture in (shown, marked))
    assert np.abs(seen - said).max() < 3, "the overlay lies on what is there"
