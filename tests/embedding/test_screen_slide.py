"""A network that sees a slide's tiles in small and asks for some of them."""

import pytest
import torch

from monai_mil.bags import LoadBagd, PixelsAsFeaturesd
from monai_mil.embedding import ScreenSlided, embed_cohort
from monai_mil.errors import BagError, SettingsError
from monai_mil.networks import ABMIL, HDMIL, LIPN

TILES = {"tile_size": 64, "min_tissue": 0.2}
PICTURES = {"tile_size": 16, "target_mpp": 2.0, "min_tissue": 0.2}


def test_it_answers_as_for_the_bags_on_disk_and_encodes_only_what_is_kept(border_slide, tmp_path):
    embed_cohort([border_slide], tmp_path / "bags", "texture", progress=False, **TILES)
    embed_cohort([border_slide], tmp_path / "pixels", "tile_pixels", progress=False, **PICTURES)
    loaded = LoadBagd()({"image": str(tmp_path / "bags" / "tissue.h5")})
    image = PixelsAsFeaturesd("image", tmp_path / "pixels")(loaded)["image"][None].float()
    torch.manual_seed(0)
    network = LIPN(HDMIL(76, 2, hidden_dim=16, attention_dim=8, degree=3)).eval()
    with torch.no_grad():
        network.decide.bias -= network(image, return_dict=True)["screen_logits"].amax(dim=1).median()
        expected = network(image, return_dict=True)
    item = ScreenSlided(encoder="texture", network=network, **TILES)({"image": str(border_slide)})
    assert torch.equal(item["coords"], loaded["coords"])
    for key, value in item["streamed"].items():
        torch.testing.assert_close(value, expected[key][0], rtol=0, atol=1e-4)
    assert item["tiles_read"] == (expected["attention"][0] > 0).any(dim=0).sum()
    assert 0 < item["tiles_read"] < len(item["coords"])


def test_what_does_not_fit_is_refused(border_slide, tmp_path):
    with pytest.raises(SettingsError, match="does not screen"):
        ScreenSlided(network=ABMIL(76, 2))
    embed_cohort([border_slide], tmp_path / "bags", "texture", progress=False, **TILES)
    loaded = LoadBagd()({"image": str(tmp_path / "bags" / "tissue.h5")})
    with pytest.raises(BagError, match="where pixels are wanted"):
        PixelsAsFeaturesd("image", tmp_path / "bags")(loaded)
    embed_cohort([border_slide], tmp_path / "other", "tile_pixels", progress=False, **PICTURES | {"target_mpp": 4.0})
    with pytest.raises(BagError, match="other tiles"):
        PixelsAsFeaturesd("image", tmp_path / "other")(loaded)
