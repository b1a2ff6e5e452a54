"""From a cohort of scans to its bags."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import track

from monai_mil.bags import check_storage
from monai_mil.cohorts import Cohort, CohortSlide, is_table, read_cohort, scan_datalist
from monai_mil.embedding.preset import fitted_preset
from monai_mil.embedding.run import EmbedReport, EmbedRun, reject
from monai_mil.embedding.scan import ScanSettings, check_packages, check_preset, check_units
from monai_mil.embedding.scan_job import SCANS, ScanJob
from monai_mil.encoders import get_encoder
from monai_mil.errors import SettingsError
from monai_mil.scans import Scan, SlicePreset, find_preset, load_scan

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder


def embed_scans(
    scans: Cohort | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    encoder: Encoder | str = "ct_texture",
    preset: SlicePreset | str | os.PathLike[str] = "chest_rsna",
    *,
    acquisition: str | None = None,
    allow_gaps: bool = False,
    accept_units: bool = False,
    lungs: Literal["threshold", "lungmask"] | None = None,
    depth: int | None = None,
    depth_mode: Literal["resize", "middle"] = "resize",
    chunk: int = 64,
    storage: Literal["float16", "uint8"] = "float16",
    device: str = "cpu",
    overwrite: bool = False,
    retry: bool = False,
    progress: bool = True,
    workers: int = 1,
    scheduler: str | None = None,
) -> EmbedReport:
    """Write the bag of every scan to ``<out_dir>/<scan_id>.h5``: one instance a slice, or a layer of ``depth``.

    A run may be killed at any moment and started again: finished scans are kept. Several runs may share ``out_dir``;
    each scan is done by one of them.

    A preset without statistics (``head_paper`` and its like) gets those of the training split, from the scans of it
    that can be read. They are written to ``<out_dir>/preset.json``, which later runs into the folder take and which
    may be given as ``preset`` for other scans.

    Args:
        scans: a cohort, its table, a folder of scans, one scan, or a list of folders and scans.
        out_dir: folder of the bags.
        encoder: an encoder or its name.
        preset: how slices become the encoder's input: a preset, its name, ``"center/width"`` or a ``preset.json``.
        acquisition: the acquisition, phase or pass to take, of series with several that overlap, where the cohort does
            not say; a DICOM series without it fails.
        allow_gaps: take scans that lack slices.
        accept_units: take scans whose values may be no Hounsfield units.
        lungs: blank what is outside the lungs, found by this method; a scan without any fails.
        depth: instances of every scan; None takes each slice as one.
        depth_mode: how slices become them: ``resize`` or ``middle`` (see ``scans.Depth``).
        chunk: slices a step.
        storage: how bags store features; uint8 takes half the space (see ``BagFile.write``).
        device: of an encoder given by name.
        overwrite: replace bags of other settings or another encoder, and another preset's ``preset.json``, which are
            errors without it. Bags that fit are kept; what cannot be read is made anew and told.
        retry: try scans again in which the process died twice, which are set aside.
        progress: show a bar, and at the end what failed.
        workers: processes on this machine (more than one needs the extra ``scale``).
        scheduler: address of a Dask scheduler to spread the scans over (needs the extra ``scale``).

    Returns:
        What became of every scan; a scan that fails never stops the others.

    Raises:
        CohortError: the table is invalid, or a folder holds no scan.
        EncoderError: the encoder is unknown or cannot be loaded.
        SettingsError: the preset does not fit the encoder, or has no statistics and there is no training split;
            there is no such storage; a package is missing.
    """
    check_storage(storage)
    cases = _cases(scans)
    loaded = get_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
    out_dir = Path(out_dir)
    chosen = find_preset(preset)
    check_preset(chosen, loaded)
    if chosen.mean is None:
        reading = {"allow_gaps": allow_gaps, "accept_units": accept_units}
        training = _training_scans(cases, chosen, acquisition, progress, **reading)
        size = loaded.card.preprocessing.input_size
        chosen = fitted_preset(chosen, out_dir, training, size, overwrite=overwrite)
    check_packages([case.path for case in cases if case.path is not None])
    settings = ScanSettings(chosen, allow_gaps, lungs, depth, depth_mode, accept_units)
    rejected = reject(SCANS, [(case.slide_id, case.path) for case in cases])
    jobs = {
        index: ScanJob(
            case.slide_id,
            case.path,
            out_dir,
            str(loaded.device),
            overwrite,
            settings,
            chunk,
            case.series_uid,
            case.acquisition or acquisition,
            storage=storage,
            retry=retry,
        )
        for index, case in enumerate(cases)
        if case.path is not None and index not in rejected
    }
    run = EmbedRun(SCANS, out_dir, loaded, encoder, settings, progress, workers, scheduler)
    return run(jobs, rejected)


def _cases(scans: Cohort | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Sequence[CohortSlide]:
    """The scans in order; those of a folder under the names ``scan_datalist`` gives them."""
    if isinstance(scans, (str, os.PathLike)):
        scans = read_cohort(scans, labels=()) if is_table(scans) else [scans]
    if isinstance(scans, Cohort):
        return scans.slides
    found = [item for place in scans for item in scan_datalist(place)]
    return [
        CohortSlide(item["scan_id"], item["scan_id"], Path(item["image"]), series_uid=item.get("series_uid") or None)
        for item in found
    ]


def _training_scans(
    cases: Sequence[CohortSlide],
    preset: SlicePreset,
    acquisition: str | None,
    progress: bool,
    *,
    allow_gaps: bool,
    accept_units: bool,
) -> Iterator[Scan]:
    """The scans of the training split that can be read, one at a time; the others fail, and are told, as jobs."""
    training = [
        (case.path, case.series_uid, case.acquisition or acquisition)
        for case in cases
        if case.split == "train" and case.path is not None
    ]
    if not training:
        raise SettingsError(
            f"preset '{preset.name}' needs the statistics of a training split: give a cohort table with a column "
            "'split', the preset.json of an earlier embedding, or a preset with fixed statistics such as 'chest_rsna'"
        )
    console = Console(stderr=True)
    shown = track(training, "statistics of the training scans", console=console, disable=not progress)
    unread = []
    for path, series_uid, part in shown:
        try:
            scan = load_scan(path, series_uid=series_uid, acquisition=part, allow_gaps=allow_gaps)
            if not accept_units:
                check_units(scan, preset)
        except Exception as error:
            unread.append(str(error))
            continue
        yield scan
    if len(unread) == len(training):
        raise SettingsError(
            f"preset '{preset.name}': none of the {len(training)} training scans can be read, so it gets no "
            f"statistics; the first: {unread[0]}"
        )
