"""The slide that bags are made of here as in the tests of embedding."""

from tests.embedding.conftest import border_slide

__all__ = ["border_slide"]
