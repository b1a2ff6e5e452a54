"""Every reader with a sound file for it, and what it makes of the file: a digest of all that it says."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Reader:
    """A reader of the package.

    Attributes:
        name: in tables.
        files: content of the files it reads, by their paths in a folder.
        damaged: the one that is damaged.
        read: reads them in a folder; gives what tells two contents apart.
        unchecked: why the format takes some damage for content; None where it has checksums over everything.
        text: whether the damaged file is text.
        packed: whether it is packed by gzip after it was damaged.
        heals: whether damage may lead to an earlier state that the files hold too.
    """

    name: str
    files: Mapping[str, bytes]
    damaged: str
    read: Callable[[Path], object]
    unchecked: str | None = None
    text: bool = False
    packed: bool = False
    heals: bool = False


def digest(*values: object) -> str:
    """What tells values apart, arrays by their bytes."""
    found = hashlib.sha256()
    for value in values:
        array = value if isinstance(value, np.ndarray) else None
        found.update(repr(value).encode(errors="replace") if array is None else np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def all_readers(folder: Path, reference: Path | None) -> list[Reader]:
    """The readers, their sound files made in a folder; those of ``reference`` (the data of ``shared/``) if there."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_slides(folder, reference),
        *_scans(folder),
        *_bags(folder),
        *_models(folder),
        *_tables(folder),
        *_truths(folder),
        *_records(folder),
    ]


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _slides(folder: Path, reference: Path | None) -> list[Reader]:
    from monai_mil.slides import write_pyramid

    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    place = folder / "slides"
    place.mkdir()
    write_pyramid(place / "jpeg.tif", pixels, mpp=0.5, downsamples=(1, 4))
    write_pyramid(place / "lzw.tif", pixels, mpp=0.5, downsamples=(1, 4), compression="lzw", ome=True)
    told = "Aperio Image Library v11\n480x320 [0,0 480x320] (256x256) JPEG/RGB Q=80|AppMag = 20|MPP = 0.5"
    write_pyramid(place / "aperio.svs", pixels, mpp=0.5, downsamples=(1, 4), description=told)
    _write_ndpi(place / "flat.ndpi", pixels[:256, :256])
    for name in ("boxes_0.dcm", "wsi_jpeg.dcm"):
        if reference is not None and (reference / "wsi" / name).exists():
            (place / name).write_bytes((reference / "wsi" / name).read_bytes())
    why = "tags and pixels have no checksum"
    return [
        Reader(f"slide {path.name}", {path.name: path.read_bytes()}, path.name, _of_slide(path.name), why)
        for path in sorted(place.iterdir())
    ]


def _of_slide(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from monai_mil.slides import open_slide, segment_tissue

        with open_slide(folder / name) as slide:
            found = [slide.size, slide.mpp, slide.remarks, slide.levels]
            width, height = (min(side, 2048) for side in slide.size)
            found.append(slide.read(0, 0, (width, height)))
            found.append(segment_tissue(slide).mask)
        return digest(*found)

    return read


def _write_ndpi(path: Path, image: np.ndarray) -> None:
    """As Hamamatsu's scanners write: a TIFF of one page, one strip of JPEG, places in numbers of 64 bits."""
    import imagecodecs

    jpeg, side = imagecodecs.jpeg_encode(image, level=90), len(image)
    magnification = struct.unpack("<I", struct.pack("<f", 20.0))[0]
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (271, 2, 10, "make")]
    tags += [(273, 4, 1, "jpeg"), (277, 3, 1, 3), (278, 4, 1, side), (279, 4, 1, len(jpeg)), (282, 5, 1, "per cm")]
    tags += [(283, 5, 1, "per cm"), (296, 3, 1, 3), (65420, 4, 1, 1), (65421, 11, 1, magnification), (65424, 9, 1, 0)]
    after = 12 + 2 + 12 * len(tags) + 8 + 4 * len(tags)
    places = {"make": after, "per cm": after + 10, "jpeg": after + 18}
    with path.open("wb") as file:
        file.write(struct.pack("<2sHQH", b"II", 42, 12, len(tags)))
        for tag, kind, count, value in tags:
            file.write(struct.pack("<HHII", tag, kind, count, places.get(value, value)))
        file.write(bytes(8 + 4 * len(tags)) + b"Hamamatsu\0" + struct.pack("<II", 20_000, 1) + jpeg)


def _scans(folder: Path) -> list[Reader]:
    import nibabel

    place = folder / "scans"
    hu = np.random.default_rng(0).integers(-1000, 1000, (4, 12, 16), dtype="<i2")
    _write_series(place / "series", hu)
    image = nibabel.Nifti1Image(hu.T, np.diag([-1.0, -1.0, 5.0, 1.0]))
    image.header.set_xyzt_units("mm")
    packed = gzip.compress(image.to_bytes(), 4)
    series = _content(place / "series")
    header = "NDims = 3\nDimSize = 16 12 4\nElementSpacing = 1 1 5\nElementType = MET_SHORT\n"
    mha = f"ObjectType = Image\n{header}ElementDataFile = LOCAL\n".encode() + hu.tobytes()
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 16 12 4\nendian: little\n"
    nrrd += "space directions: (1,0,0) (0,1,0) (0,0,5)\nspace origin: (0,0,0)\nencoding: raw\n\n"
    why = "header and pixels have no checksum"
    one = next(iter(series))
    return [
        Reader("scan DICOM", series, one, _of_scan(""), why),
        Reader("scan NIfTI", {"a.nii": gzip.decompress(packed)}, "a.nii", _of_scan("a.nii"), why),
        Reader("scan NIfTI, packed", {"a.nii.gz": packed}, "a.nii.gz", _of_scan("a.nii.gz"), "its header has none"),
        Reader(
            "scan NIfTI, damaged, then packed",
            {"a.nii.gz": gzip.decompress(packed)},
            "a.nii.gz",
            _of_scan("a.nii.gz"),
            why,
            packed=True,
        ),
        Reader("scan MHA", {"a.mha": mha}, "a.mha", _of_scan("a.mha"), why),
        Reader("scan NRRD", {"a.nrrd": nrrd.encode() + hu.tobytes()}, "a.nrrd", _of_scan("a.nrrd"), why),
    ]


def _write_series(folder: Path, hu: np.ndarray) -> None:
    from monai_mil.scans import ScanFrame
    from monai_mil.synthetic.series import SyntheticSeries, synthetic_uid

    n, height, width = hu.shape
    frame = ScanFrame(
        scan_id="a",
        path=None,
        size=(height, width),
        spacing=(1.0, 1.0),
        orientation=np.eye(3)[:2],
        origins=np.column_stack([np.zeros((n, 2)), 5.0 * np.arange(n)]),
        sop_uids=tuple(synthetic_uid(0, "instance", number) for number in range(n)),
        frame_numbers=(1,) * n,
        study_uid=synthetic_uid(0, "study"),
        series_uid=synthetic_uid(0, "series"),
        frame_of_reference_uid=synthetic_uid(0, "reference"),
    )
    series = SyntheticSeries(frame, 5.0, "P-1", -2000)
    for number in range(n):
        series.write(folder / f"{number}.dcm", hu[number], number, number + 1)


def _of_scan(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from monai_mil.scans import load_scan

        scan = load_scan(folder / name)
        return digest(*(getattr(scan, part) for part in sorted(vars(scan))), scan.remarks)

    return read


def _bags(folder: Path) -> list[Reader]:
    import h5py
    import torch

    from monai_mil.bags import BagFile, BagInfo
    from monai_mil.heatmaps import SlideFrame
    from monai_mil.heatmaps.heatmap import assemble

    rng = np.random.default_rng(0)
    place = folder / "bags"
    coords = np.stack(np.meshgrid(np.arange(8) * 256, np.arange(5) * 256), axis=-1).reshape(-1, 2)
    info = BagInfo("a", encoder="mine", mpp=0.5, tile_size_level0=256.0, level0_size=(2048, 1280), tissue={"mpp": 8.0})
    vectors, tokens = rng.standard_normal((40, 24)).astype(np.float32), rng.standard_normal((40, 6, 2, 2))
    labels = {"instance_labels": rng.integers(0, 2, 40)}
    for kind, features, storage in (
        ("float16", vectors, "float16"),
        ("uint8", vectors, "uint8"),
        ("spatial", tokens, "float16"),
    ):
        BagFile.write(place / kind / "a.h5", features, coords, info, labels, storage)
    foreign = place / "trident" / "a.h5"
    foreign.parent.mkdir()
    with h5py.File(foreign, "w") as file:
        file.create_dataset("features", data=vectors, chunks=(10, 24))
        file.create_dataset("coords", data=coords)
        file["coords"].attrs.update({"patch_size": 256, "level0_magnification": 20, "target_magnification": 20})
        file["coords"].attrs.update({"name": "a", "savetodir": "/data", "level0_width": 2048, "level0_height": 1280})
        file["features"].attrs["encoder"] = "uni_v1"
    clam = place / "clam" / "a.pt"
    clam.parent.mkdir()
    torch.save(torch.from_numpy(vectors), clam)
    frame = SlideFrame("a", "a.svs", level0_size=(2048, 1280), mpp=0.5, tile_size_level0=256.0)
    scores = rng.random(40).astype(np.float32)
    assemble(scores, coords, frame, name="attention", attributes={"model": "m"}).save(place / "heatmap" / "a.h5")
    theirs = "other programs write no checksum"
    readers = [
        Reader(f"bag, {kind}", _content(place / kind), "a.h5", _of_bag("a.h5"))
        for kind in ("float16", "uint8", "spatial")
    ]
    return [
        *readers,
        Reader("bag of TRIDENT", _content(place / "trident"), "a.h5", _of_bag("a.h5"), theirs),
        Reader("bag of CLAM", _content(place / "clam"), "a.pt", _of_bag("a.pt"), theirs),
        Reader("heatmap", _content(place / "heatmap"), "a.h5", _of_heatmap),
    ]


def _of_bag(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from monai_mil.bags import BagFile

        with BagFile(folder / name) as bag:
            whole, mapped = bag.features(), bag.mapped()
            bag.verify()
            extras = [value for extra in bag.extras for value in (extra, bag.extra(extra))]
            return digest(bag.info, bag.n, bag.grid, bag.storage, bag.coords, whole, mapped.features.numpy(), *extras)

    return read


def _of_heatmap(folder: Path) -> object:
    from monai_mil.heatmaps import Heatmap

    heatmap = Heatmap.load(folder / "a.h5")
    return digest(heatmap.scores, heatmap.coords, heatmap.frame, heatmap.name, dict(heatmap.attributes))


def _models(folder: Path) -> list[Reader]:
    import torch
    from ignite.engine import Engine
    from torch import nn

    from monai_mil.model_card import ModelCard, weights_digest
    from monai_mil.training import Checkpointer

    place = folder / "model"
    place.mkdir()
    torch.manual_seed(0)
    weights = nn.Linear(12, 3).state_dict()
    torch.save(weights, place / "model.pt")
    settings = {"class_names": ["normal", "tumor"], "encoder": "texture", "in_channels": 12}
    ModelCard(settings, weights_digest(weights), path=place / "model.pt").write()
    network = nn.Linear(12, 3)
    engine = Engine(lambda engine, batch: nn.init.constant_(network.bias, engine.state.epoch))
    Checkpointer(folder / "checkpoints", {"network": network}).attach(engine)
    engine.run([0], max_epochs=2)
    newest = "checkpoint_epoch=2.pt"
    return [
        Reader("weights", _content(place), "model.pt", _of_model),
        Reader("model.json", _content(place), "model.json", _of_model, "a text without a checksum", text=True),
        Reader("checkpoint", _content(folder / "checkpoints"), newest, _of_checkpoint, heals=True),
    ]


def _of_model(folder: Path) -> object:
    from monai_mil.model_card import read_model

    card = read_model(folder / "model.pt")
    return digest(card.settings, card.weights, card.note, card.operating_points)


def _of_checkpoint(folder: Path) -> object:
    from ignite.engine import Engine
    from torch import nn

    from monai_mil.training import Checkpointer

    network, engine = nn.Linear(12, 3), Engine(lambda engine, batch: None)
    engine.state.max_epochs = 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Checkpointer(folder, {"network": network}, resume=True).load(engine)
    return digest(network.weight.detach().numpy(), network.bias.detach().numpy())


def _tables(folder: Path) -> list[Reader]:
    table = "slide_id,patient_id,path,split,label,mpp\n" + "".join(
        f'S-{number},P-{number // 2},"slides/{number}.svs",{split},{number % 2},0.25\n'
        for number, split in enumerate(("train", "train", "val", "val", "test", "test") * 2)
    )
    entries = [{"image": f"slides/{number}.svs", "label": number % 2} for number in range(6)]
    listed = json.dumps({"training": entries[:3], "validation": entries[3:5], "testing": entries[5:]}, indent=1)
    why = "a text without a checksum"
    return [
        Reader("cohort CSV", {"cohort.csv": table.encode()}, "cohort.csv", _of_cohort("cohort.csv"), why, text=True),
        Reader("data list", {"cohort.json": listed.encode()}, "cohort.json", _of_cohort("cohort.json"), why, text=True),
    ]


def _of_cohort(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        import os

        from monai_mil.cohorts import read_cohort

        cohort = read_cohort(folder / name)
        slides = [
            [os.path.relpath(value, folder) if isinstance(value, Path) else value for value in vars(slide).values()]
            for slide in cohort.slides
        ]
        return digest(slides, cohort.classes, cohort.labels)

    return read


def _truths(folder: Path) -> list[Reader]:
    from monai_mil.slides import write_pyramid

    place = folder / "truths"
    place.mkdir()
    square = [[100, 100], [900, 100], [900, 700], [100, 700], [100, 100]]
    hole = [[300, 300], [500, 300], [500, 500], [300, 500], [300, 300]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square, hole]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    geojson = json.dumps({"type": "FeatureCollection", "features": [feature, feature]}, indent=1)
    corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />\n' for i, (x, y) in enumerate(square))
    asap = (
        '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>\n<Annotation Name="A" Type="Polygon" '
        f'PartOfGroup="Tumor"><Coordinates>{corners}</Coordinates></Annotation>\n</Annotations></ASAP_Annotations>'
    )
    ncrf = json.dumps({"positive": [{"name": "A", "vertices": square}], "negative": []}, indent=1)
    mask = np.zeros((384, 512, 3), np.uint8)
    mask[50:200, 60:300] = 255
    write_pyramid(place / "mask.tif", mask, mpp=0.5, downsamples=(1, 4), compression="lzw", binary=True)
    np.savez_compressed(place / "mask.npz", tumour=mask[::8, ::8, 0] > 0, downsample=16)
    stored = (place / "mask.npz").read_bytes()
    why = "a text without a checksum"
    return [
        Reader("truth GeoJSON", {"a.geojson": geojson.encode()}, "a.geojson", _of_truth("a.geojson"), why, text=True),
        Reader("truth ASAP", {"a.xml": asap.encode()}, "a.xml", _of_truth("a.xml"), why, text=True),
        Reader("truth NCRF", {"a.json": ncrf.encode()}, "a.json", _of_truth("a.json"), why, text=True),
        Reader(
            "truth TIFF",
            {"a.tif": (place / "mask.tif").read_bytes()},
            "a.tif",
            _of_truth("a.tif"),
            "tags and pixels have no checksum",
        ),
        Reader(
            "truth npz", {"a.npz": stored}, "a.npz", _of_truth("a.npz"), "names and sizes in a zip have no checksum"
        ),
    ]


def _of_truth(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from monai_mil.slides import open_truth

        truth = open_truth(folder / name, level0_size=(1024, 768))
        return digest(truth.window(0, 0, 1024, 768, (96, 128)), truth.boxes())

    return read


def _records(folder: Path) -> list[Reader]:
    from monai_mil.embedding.partial_rows import PartialRows
    from monai_mil.runs.journal import Journal
    from monai_mil.scans import find_preset

    place = folder / "records"
    rows = PartialRows(place / "rows" / "a.rows", {"slide": "a"}, (20, 6), 5)
    features = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float16)
    rows.append(features[:5])
    rows.append(features[5:])
    rows.close()
    (place / "preset").mkdir()
    preset = json.dumps(find_preset("chest_rsna").record(), indent=1)
    (place / "preset" / "preset.json").write_text(preset)
    journal = Journal(place / "journal" / "predict.jsonl", "settings")
    journal.begin({})
    for number in range(4):
        journal.attempt(f"S-{number}")
        journal.add(f"S-{number}", "source", {"PredictionSaver": {"prob": [0.25, 0.75]}}, ["heatmaps/a.h5"])
    return [
        Reader("unfinished rows", _content(place / "rows"), "a.rows", _of_rows, heals=True),
        Reader("checksums of unfinished rows", _content(place / "rows"), "a.sums", _of_rows, heals=True, text=True),
        Reader(
            "preset.json", _content(place / "preset"), "preset.json", _of_preset, "a text without a checksum", text=True
        ),
        Reader("predict.jsonl", _content(place / "journal"), "predict.jsonl", _of_journal, heals=True, text=True),
    ]


def _of_rows(folder: Path) -> object:
    """Rows that are found; those that are missing are made again, so fewer of the same are as good."""
    from monai_mil.embedding.partial_rows import PartialRows

    rows = PartialRows(folder / "a.rows", {"slide": "a"}, (20, 6), 5)
    rows.close()
    found = np.frombuffer((folder / "a.rows").read_bytes(), np.float16)
    return [digest(found[start : start + 30]) for start in range(0, len(found), 30)]


def _of_preset(folder: Path) -> object:
    from monai_mil.scans import find_preset

    return digest(find_preset(folder / "preset.json").record())


def _of_journal(folder: Path) -> object:
    from monai_mil.runs.journal import Journal

    journal = Journal.open(folder / "predict.jsonl", "settings")
    return [digest(entry) for entry in journal.done.values()]
