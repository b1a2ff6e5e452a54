"""A slide's ICC profile and the colours it means."""

from __future__ import annotations

import io

import numpy as np

from monai_mil.errors import SlideReadError


class ToSRGB:
    """Turns pixels of a profile into sRGB, in place; safe to call from several threads.

    Args:
        profile: the ICC profile.
        path: the slide, for messages.

    Raises:
        SlideReadError: the profile is damaged, or of no colours that a slide's pixels can have.
    """

    def __init__(self, profile: bytes, path: object) -> None:
        from PIL import ImageCms

        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            self._mode = {"RGB": "RGB", "GRAY": "L"}[source.profile.xcolor_space.strip()]
            self._transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), self._mode, "RGB")
        except (OSError, KeyError, ImageCms.PyCMSError) as error:
            raise SlideReadError(
                f"slide '{path}': its ICC profile cannot be applied ({error}); leave out --icc apply"
            ) from error

    def __call__(self, pixels: np.ndarray) -> None:
        """Turn uint8 ``[h, w, 3]`` into sRGB."""
        from PIL import Image, ImageCms

        source = pixels if self._mode == "RGB" else np.ascontiguousarray(pixels[..., 0])
        image = ImageCms.applyTransform(Image.fromarray(source), self._transform)
        assert image is not None
        pixels[:] = np.asarray(image)
