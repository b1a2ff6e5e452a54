"""The encoder that leaves CT slices as they are."""

import numpy as np
import torch

from monai_mil.encoders import get_encoder
from monai_mil.scans import prepare_slices, slice_preset


def test_a_token_is_a_pixel_and_the_vector_is_their_mean():
    slices = prepare_slices(np.random.default_rng(0).uniform(-1000, 400, (2, 128, 128)), slice_preset("insight"), 128)
    tokens = get_encoder("ct_pixels", spatial=True).encode(slices)
    torch.testing.assert_close(tokens, slices[:, :1].half())
    torch.testing.assert_close(get_encoder("ct_pixels").encode(slices), slices[:, :1].mean(dim=(2, 3)).half())
