"""A Leica SCN file whose scanned part is a piece of a larger canvas, as OpenSlide reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

CANVAS, CORNER, NANOMETRES = (2048, 1536), (700, 500), 500

_IMAGE = (
    '<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
    '<device model="SCN400" version="1"/><pixels sizeX="{w}" sizeY="{h}">{levels}</pixels>'
    '<view sizeX="{vw}" sizeY="{vh}" offsetX="{x}" offsetY="{y}"/><scanSettings><objectiveSettings>'
    "<objective>{power}</objective></objectiveSettings><illuminationSettings><numericalAperture>{na}"
    "</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
    "</image>"
)


def write_scn(path: Path, image: np.ndarray) -> Path:
    """Write ``image``, uint8 ``[h, w, 3]``, with its corner at ``CORNER`` of a canvas of ``CANVAS`` px at 0.5 mpp."""
    (width, height), nm = CANVAS, NANOMETRES
    h, w = image.shape[:2]
    macro = np.full((height // 16, width // 16, 3), 235, np.uint8)
    level = '<dimension sizeX="{}" sizeY="{}" r="0" ifd="{}"/>'
    view = {"name": 1, "vw": width * nm, "vh": height * nm, "x": 0, "y": 0, "power": 0.6, "na": 0.2}
    scan = {"name": 2, "vw": w * nm, "vh": h * nm, "x": CORNER[0] * nm, "y": CORNER[1] * nm, "power": 20, "na": 0.4}
    views = [
        _IMAGE.format(w=width // 16, h=height // 16, levels=level.format(width // 16, height // 16, 0), **view),
        _IMAGE.format(w=w, h=h, levels=level.format(w, h, 1), **scan),
    ]
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:3">'
        f'<collection name="c" uuid="urn:uuid:4" sizeX="{width * nm}" sizeY="{height * nm}"><barcode>MQ==</barcode>'
        + "".join(views)
        + "</collection></scn>"
    )
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "compression": "jpeg"}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(macro, description=xml, **options)
        tiff.write(image, **options)
    return path
