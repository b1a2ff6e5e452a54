"""A person's name in any attribute of a DICOM file: it reaches no message, log, table or bag."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from chaos.forks import monai_mil, run
from chaos.materials import Materials
from chaos.promises import Promises

NAME = "PLANTED^PERSON"
_PARTS = ("PLANTED", "PERSON")
_TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
_ABSENT = (
    *("RescaleType", "PatientComments", "ProtocolName", "ContrastBolusAgent", "InstitutionName", "OperatorsName"),
    *("AcquisitionDate", "AcquisitionTime", "TemporalPositionIdentifier", "SpacingBetweenSlices", "ImageComments"),
    *("WindowCenterWidthExplanation", "Laterality", "StationName", "BurnedInAnnotation", "PatientAge"),
)


def names(folder: Path, seed: int, count: int, reference: Path | None) -> Promises:
    """Plant the name in so many files, in one to three attributes each, and embed them."""
    made = Materials(folder / "materials", seed)
    series = sorted(path for path in (made.scans.parent / "scans").iterdir() if path.is_dir())[0]
    slides = [] if reference is None else sorted((reference / "wsi").glob("*.dcm"))
    promises = Promises()
    rng = random.Random(seed)
    for number in range(count):
        source, command = (slides[number // 4 % len(slides)], "embed") if slides and number % 4 == 3 else (series, "")
        command = command or "embed-scans"
        place, out = folder / "planted", folder / "out"
        for old in (place, out):
            shutil.rmtree(old, ignore_errors=True)
        keywords = _plant(source, place, rng)
        coarse = ("--target-mpp", 16) if command == "embed" else ()  # some of the reference slides are no finer
        fork = run(monai_mil(command, place, "--out", out, *coarse), folder / "said.txt")
        what = f"number {number}, {command}, {', '.join(keywords)}"
        promises["no crash, no traceback"].test(
            fork.code in (0, 1) and "Traceback" not in fork.words, f"{what}: {fork.words[-400:]}"
        )
        promises[f"{command}: no name on the screen"].test(
            not _holds(fork.words.encode()), f"{what}: {fork.words[-300:]}"
        )
        for path in out.rglob("*") if out.exists() else ():
            if path.is_file():
                kind = "bags" if path.suffix == ".h5" else "manifests, tables and all else"
                promises[f"{command}: no name in {kind}"].test(not _holds(path.read_bytes()), f"{what}: {path.name}")
        promises["names planted"].tried += len(keywords)
    return promises


def _holds(content: bytes) -> bool:
    return any(part.encode() in content for part in _PARTS)


def _plant(source: Path, place: Path, rng: random.Random) -> list[str]:
    """Copy a file or the files of a series, and write the name into some attributes of one or all of them."""
    import pydicom
    from pydicom import config
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    files = sorted(source.iterdir()) if source.is_dir() else [source]
    place.mkdir(parents=True)
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    first = pydicom.dcmread(files[0])
    known = [element.keyword for element in first if element.keyword and element.VR in _TEXTS]
    keywords = rng.sample([*known, *_ABSENT], rng.choice((1, 1, 2, 3)))
    everywhere = rng.random() < 0.5
    for number, path in enumerate(files):
        data = pydicom.dcmread(path)
        if everywhere or number == 0:
            for keyword in keywords:
                tag = Tag(tag_for_keyword(keyword))
                value = NAME.encode()
                data._dict[tag] = RawDataElement(
                    tag, dictionary_VR(tag), len(value), value, 0, data.original_encoding[0], True
                )
        data.save_as(place / path.name)
    return keywords
