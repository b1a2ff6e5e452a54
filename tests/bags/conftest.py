"""Slides that bags are made of here as in the tests of embedding."""

from tests.embedding.conftest import border_slide, slide_cohort

__all__ = ["border_slide", "slide_cohort"]
