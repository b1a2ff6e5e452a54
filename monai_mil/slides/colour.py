"""From the samples a TIFF stores, of any photometric interpretation, to 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

GREY_INVERTED, GREY, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
BYTE_CODECS = (1, 5, 8, 32946, 32773, 50000)
"""None, LZW, Deflate, PackBits and Zstandard, which know nothing of pixels."""
_COLOURS = {GREY_INVERTED: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3, ICCLAB: 3}
"""Samples of a pixel that are colour; what follows them is opacity or nothing known."""
_MOST_EXTRAS = 2
_ASSOCIATED_ALPHA = 1
_BY_CODEC = {33003: YCBCR, 33005: RGB}
"""Aperio's JPEG 2000, whose codec says what its samples are; others (Bio-Formats) go by the photometric tag."""
_TIFF_ALIKE = "`vips tiffsave IN{page} OUT.tif --tile --pyramid --compression jpeg`"
_WHITES = {"D50": (0.3457, 0.3585), "D65": (0.3127, 0.3290)}
_BRADFORD = np.array(
    [[0.9555766, -0.0230393, 0.0631636], [-0.0282895, 1.0099416, 0.0210077], [0.0122982, -0.0204830, 1.3299098]]
)
"""Colours under D50 as they look under D65."""


def refusal(page: Any) -> str | None:
    """Why the samples of a page cannot be shown as RGB, and what to do; None where they can."""
    number = f"[page={page.index}]" if isinstance(page.index, int) and page.index else ""
    convert = _TIFF_ALIKE.format(page=number)
    colours = _COLOURS.get(int(page.photometric))
    if page.photometric == CMYK and page.compression == 7:
        return (
            "its pixels are CMYK in JPEG, which is stored in two ways; convert it, `vips colourspace "
            f"IN{number} OUT.tif[tile,pyramid,compression=jpeg] srgb`"
        )
    if page.sampleformat not in (1, 4) or page.bitspersample not in (1, 2, 4, 8, 10, 12, 14, 16):
        is_whole = page.sampleformat in (1, 2)
        white = 2 ** (page.bitspersample - (page.sampleformat == 2)) - 1 if is_whole else 1
        return (
            f"its pixels are {page.bitspersample}-bit {'numbers' if is_whole else 'floats'}, not 8 or 16 bits of "
            f"colour; where white is {white}, scale them, `vips linear IN{number} "
            f"OUT.tif[tile,pyramid,compression=jpeg] {255 / white:.10g} 0 --uchar`"
        )
    if colours is None or not colours <= page.samplesperpixel <= colours + _MOST_EXTRAS or page.imagedepth != 1:
        return (
            f"its photometric interpretation {int(page.photometric)} with {page.samplesperpixel} samples a pixel is no "
            "colour known here; export it as 8-bit RGB from the program that wrote it, and make tiles of that, for "
            f"example with {convert}"
        )
    if not page.is_tiled:
        return f"its pixels are not stored as tiles; convert it, for example with {convert}"
    if is_subsampled(page) and page.predictor != 1:
        return (
            f"its YCbCr of coarse chroma has predictor {page.predictor}, which means nothing there; export it as 8-bit "
            "RGB in JPEG or LZW tiles from the program that wrote it"
        )
    if page.photometric in (CIELAB, ICCLAB) and (page.bitspersample not in (8, 16) or _illuminant(page) is None):
        return f"its CIELAB colours are of a kind not known here; convert it, for example with {convert}"
    return None


def remark(page: Any) -> str | None:
    """What had to be assumed about the colours of a page."""
    if page.photometric == CIELAB and 318 not in page.tags:
        return "its CIELAB pixels name no white point; they are read as of D65"
    if page.photometric == CMYK:
        return "its pixels are CMYK, read as inks that let through what they do not cover, without a profile"
    if _alpha(page) is not None and not page.extrasamples[_alpha(page)]:
        return "its last sample is not said to be anything; it is read as opacity over white"
    return None


def is_plain_rgb(page: Any) -> bool:
    """Whether the page's samples are 8-bit RGB as they are, or JPEG's YCbCr, three of them side by side."""
    return (
        page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.dtype == np.uint8
        and page.planarconfig == 1
        and page.imagedepth == 1
        and (page.photometric == RGB or (page.photometric == YCBCR and page.compression == 7))
    )


def is_subsampled(page: Any) -> bool:
    """Whether a page's tag has YCbCr of coarse chroma, by a codec that knows nothing of it."""
    return page.photometric == YCBCR and page.is_subsampled and page.compression in BYTE_CODECS


@dataclass(frozen=True, eq=False)
class Colours:
    """What the samples of a page mean; made by :meth:`of` while its file is open.

    Attributes:
        photometric: of what the codec gives, which may differ from what is stored.
        inks: samples of a pixel that are colour.
        white: the largest value of a sample.
        alpha: which sample is opacity, None if none is.
        is_premultiplied: whether the colours are multiplied by it already.
        palette: uint8 ``[entries, 3]`` where samples are its rows.
        luma: shares of red, green and blue in YCbCr's luma.
        black_white: values of black and white of its three samples.
        illuminant: white of CIELAB.
    """

    photometric: int
    inks: int
    white: int
    alpha: int | None
    is_premultiplied: bool
    palette: np.ndarray | None
    luma: tuple[float, ...]
    black_white: tuple[float, ...]
    illuminant: str | None

    @classmethod
    def of(cls, page: Any) -> Colours:
        """Read the tags of a page."""
        photometric, extra = int(page.photometric), _alpha(page)
        inks = _COLOURS[photometric]
        if inks == 3 and page.description.startswith("Aperio"):
            photometric = _BY_CODEC.get(int(page.compression), photometric)
        if page.compression == 7 and photometric == YCBCR:  # the codec makes it RGB
            photometric = RGB
        return cls(
            photometric=photometric,
            inks=inks,
            white=_white_value(page),
            alpha=None if extra is None else inks + extra,
            is_premultiplied=extra is not None and page.extrasamples[extra] == _ASSOCIATED_ALPHA,
            palette=_palette(page) if photometric == PALETTE else None,
            luma=_rationals(page, 529, (0.299, 0.587, 0.114)),
            black_white=_rationals(page, 532, (0, 255, 128, 255, 128, 255)),
            illuminant=_illuminant(page),
        )

    def to_rgb(self, samples: np.ndarray) -> np.ndarray:
        """Decoded samples ``[h, w, s]`` as RGB over white, uint8 ``[h, w, 3]``."""
        rgb = self._opaque(samples[..., : self.inks])
        if rgb.shape[-1] == 1:
            rgb = np.repeat(rgb, 3, axis=-1)
        if self.alpha is None:
            return rgb
        opacity = self._to_8_bits(samples[..., self.alpha : self.alpha + 1]).astype(np.uint32)
        coloured = rgb.astype(np.uint32) * (255 if self.is_premultiplied else opacity)
        return (np.minimum(coloured + 255 * (255 - opacity) + 127, 255 * 255 + 127) // 255).astype(np.uint8)

    def _opaque(self, colour: np.ndarray) -> np.ndarray:
        if self.illuminant is not None:
            return _from_lab(colour, self.photometric == ICCLAB, self.illuminant)
        if self.palette is not None:
            rows: np.ndarray = self.palette[np.minimum(colour[..., 0], len(self.palette) - 1)]
            return rows
        values = self._to_8_bits(colour)
        if self.photometric == YCBCR:
            return self._from_ycbcr(values)
        if self.photometric == GREY_INVERTED:
            return 255 - values
        if self.photometric == CMYK:
            light = 255 - values.astype(np.uint32)
            return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)
        return values

    def _to_8_bits(self, samples: np.ndarray) -> np.ndarray:
        if self.white == 255:
            return samples.astype(np.uint8, copy=False)
        return np.minimum((samples.astype(np.uint32) * 255 + self.white // 2) // self.white, 255).astype(np.uint8)

    def _from_ycbcr(self, samples: np.ndarray) -> np.ndarray:
        black, white = np.array(self.black_white[::2]), np.array(self.black_white[1::2])
        red, green, blue = self.luma
        y, cb, cr = np.moveaxis((samples - black) * (np.array([255, 127, 127]) / (white - black)), -1, 0)
        r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
        rgb = np.stack([r, (y - blue * b - red * r) / green, b], axis=-1)
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def unpack_subsampled(data: bytes, page: Any) -> np.ndarray:
    """Samples ``[h, w, 3]`` of a tile of YCbCr whose chroma is stored once for several pixels, as TIFF 6.0 packs it."""
    across, down = page.subsampling
    height, width = -(-page.tilelength // down), -(-page.tilewidth // across)
    unit = across * down + 2
    units = np.frombuffer(data, np.uint8, height * width * unit).reshape(height, width, unit)
    luma = units[..., :-2].reshape(height, width, down, across).swapaxes(1, 2).reshape(height * down, width * across)
    chroma = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    whole = np.concatenate([luma[..., None], chroma], axis=-1)
    return whole[: page.tilelength, : page.tilewidth]


def _alpha(page: Any) -> int | None:
    """Which extra sample is opacity, if any."""
    extras = list(page.extrasamples)
    if len(extras) == 1:
        return 0
    return next((index for index, kind in enumerate(extras) if kind in (1, 2)), None)


def _white_value(page: Any) -> int:
    """The largest value of a sample; cameras of 10 or 12 bits write 16 and may say so."""
    white = (1 << int(page.bitspersample)) - 1
    largest = page.tags.valueof(281)
    largest = max(largest) if isinstance(largest, tuple) else largest
    return largest if isinstance(largest, int) and page.bitspersample > 8 and 255 < largest < white else white


def _palette(page: Any) -> np.ndarray:
    """The colour map, which the standard wants in 16 bits and some write in 8; uint8 ``[entries, 3]``."""
    table = np.asarray(page.colormap, np.uint32).T
    return ((table + 128) // 257 if table.max(initial=0) > 255 else table).astype(np.uint8)


def _rationals(page: Any, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """A tag of rational numbers, or the default where it is missing or impossible."""
    found = page.tags.valueof(tag)
    if not isinstance(found, tuple) or len(found) != 2 * len(default) or 0 in found[1::2]:
        return default
    values = tuple(a / b for a, b in zip(found[::2], found[1::2], strict=True))
    usable = all(values) if len(default) < 6 else all(a != b for a, b in zip(values[::2], values[1::2], strict=True))
    return values if usable else default


def _illuminant(page: Any) -> str | None:
    """The white of a page's CIELAB colours, None of others; ICC's is D50, and where nothing is said D65 is usual."""
    if page.photometric == ICCLAB:
        return "D50"
    if page.photometric != CIELAB:
        return None
    x, y = _rationals(page, 318, _WHITES["D65"])
    return next((name for name, (a, b) in _WHITES.items() if abs(a - x) + abs(b - y) < 0.004), None)


def _from_lab(samples: np.ndarray, is_icc: bool, illuminant: str) -> np.ndarray:
    from skimage.color import lab2xyz, xyz2rgb

    wide = samples.dtype.itemsize == 2
    step = 256 if wide else 1
    lab = np.empty(samples.shape, np.float64)
    if is_icc:
        lab[..., 0] = samples[..., 0] * (100 / (65280 if wide else 255))
        lab[..., 1:] = samples[..., 1:] / step - 128.0
    else:
        lab[..., 0] = samples[..., 0] * (100 / (65535 if wide else 255))
        lab[..., 1:] = samples[..., 1:].astype(np.int16 if wide else np.int8)
        lab[..., 1:] /= step
    xyz = lab2xyz(lab, illuminant=illuminant)
    if illuminant == "D50":
        xyz = xyz @ _BRADFORD.T
    return np.clip(np.rint(xyz2rgb(xyz) * 255), 0, 255).astype(np.uint8)
