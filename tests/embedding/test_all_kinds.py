"""A folder in which slides of every kind lie beside what is none: every good one is embedded, every bad one told."""

import cv2
import numpy as np
import pytest

from monai_mil.embedding import embed_cohort
from monai_mil.slides import write_pyramid
from tests.embedding.counting import CountingEncoder
from tests.slides.drawn import FLAGGED, Page, padded_to_tiles, reduced, write_pages
from tests.slides.scn import write_scn


@pytest.fixture(scope="module")
def tissue():
    pixels = np.random.default_rng(0).integers(90, 200, (700, 900, 3), dtype=np.uint8)
    pixels[:, :, 1] //= 2
    pixels[:80] = pixels[:, :80] = 245
    return pixels


def test_one_run_over_all_of_them(tissue, tmp_path, capfd):
    folder, elsewhere = tmp_path / "slides", tmp_path / "elsewhere"
    for place in (folder / "batch1", folder / "batch2", elsewhere):
        place.mkdir(parents=True)
    half = Page(reduced(tissue, 2), 1.0)
    good = {
        "UPPER": write_pages(folder / "UPPER.TIF", [Page(tissue)]),
        "unflagged": write_pages(folder / "unflagged.tif", [Page(tissue), half]),
        "macro_first": write_pages(folder / "macro_first.tif", [Page(tissue[:128, :256], 30.0), Page(tissue)]),
        "padded": write_pages(
            folder / "padded.tif", [Page(tissue), Page(padded_to_tiles(reduced(tissue, 2)), 1.0, FLAGGED)]
        ),
        "chroma": write_pages(
            folder / "chroma.tif",
            [Page(cv2.cvtColor(tissue, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]].copy(), options={"photometric": "ycbcr"})],
        ),
        "bounded": write_scn(folder / "bounded.scn", tissue[:640, :640]),
        "nameless": write_pages(folder / "nameless", [Page(tissue)]),
        "linked": write_pages(elsewhere / "linked.tif", [Page(tissue)]),
        "batch1_HE": write_pages(folder / "batch1" / "HE.tif", [Page(tissue)]),
        "batch2_HE": write_pages(folder / "batch2" / "HE.tif", [Page(tissue[::-1].copy())]),
    }
    (folder / "patient").symlink_to(elsewhere)
    (folder / "lost").symlink_to(tmp_path / "nowhere")
    (folder / "text.svs").write_text("no slide")
    write_pages(folder / "no_size.tif", [Page(tissue, None)])
    write_pyramid(folder / "blank.tif", np.full((700, 900, 3), 244, np.uint8), mpp=0.5)
    (folder / "cut.tif").write_bytes(good["UPPER"].read_bytes()[:200_000])

    report = embed_cohort([folder], tmp_path / "bags", CountingEncoder(tmp_path / "log"))
    assert {result.case_id for result in report.results if result.status == "embedded"} == set(good)
    told = {result.case_id: result.error for result in report.failed}
    assert set(told) == {"lost", "text", "no_size", "blank", "cut"}
    shown = capfd.readouterr().err.splitlines()
    for error in told.values():
        assert sum(error in line for line in shown) == 1
        assert "\n" not in error
    assert sorted(path.stem for path in (tmp_path / "bags").glob("*.h5")) == sorted(good)
