"""A network that asks for a slide's tiles level by level."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from monai_mil.bags import LoadTreed, collate_bags
from monai_mil.embedding import DescendSlided, EmbedSettings, StreamSlided, embed_cohort, tree_slide
from monai_mil.embedding.descend_slide import TreeFeatures
from monai_mil.embedding.stream_slide import SlideFeatures
from monai_mil.encoders import get_encoder
from monai_mil.errors import EncoderError, NoTissueError, SettingsError, SlideReadError
from monai_mil.networks import ABMIL, HAGMIL
from monai_mil.slides import open_slide, write_pyramid
from monai_mil.slides.tiff import TiffPyramid
from tests.embedding.conftest import damaged_copy
from tests.embedding.counting import CountingEncoder, encoded
from tests.embedding.test_stream_slide import spoilt

SETTINGS = {"levels": 3, "tile_size": 64, "min_tissue": 0.2}


class Asking(nn.Module):
    """Asks for the whole coarsest level, then for the children of ``k`` tiles in a shuffled order."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.k = k
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def descend(self, sources):
        assert not self.training
        assert not torch.is_grad_enabled()
        rows = torch.arange(len(sources[0]))
        for source in sources:
            features = source(rows)
            self.asked.append((rows, features))
            chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: self.k]]
            rows = (4 * chosen[:, None] + torch.arange(4)).flatten()
        return {"logits": self.asked[-1][1].float().mean(dim=0, keepdim=True)}


@pytest.fixture
def tissue(border_slide):
    return border_slide


def descend(network, encoder="texture", **settings):
    return DescendSlided(encoder=encoder, network=network, **{"batch_size": 4, **SETTINGS, **settings})


@pytest.mark.parametrize("k", [1, 3, 10_000])
def test_what_is_read_are_the_rows_of_the_bags_on_disk(tissue, tmp_path, k):
    embed_cohort([tissue], tmp_path, "texture", progress=False, **SETTINGS)
    loaded = LoadTreed()({"image": str(tmp_path / "level_2" / "tissue.h5")})
    network = Asking(k).train()
    item = descend(network)({"image": str(tissue), "label": 1})
    assert network.training, "it is left as it was"
    n = len(network.asked[0][0])
    for (rows, features), start in zip(network.asked, (0, n, 5 * n), strict=True):
        assert torch.equal(features, loaded["image"].as_tensor().T[start + rows])
    for name in ("coords", "inside", "tissue_fraction"):
        assert torch.equal(item[name], loaded[name])
    assert item["label"] == 1
    assert torch.equal(item["streamed"]["logits"], network.asked[-1][1].float().mean(dim=0))


@pytest.mark.parametrize("k", [2, 5, 10_000])
def test_hag_mil_answers_as_for_the_bags_on_disk(tissue, tmp_path, k):
    torch.manual_seed(0)
    network = HAGMIL(76, 2, k_eval=k, hidden_dims=(16, 32, 16, 16), instance_channels=16, attention_dim=8).eval()
    item = descend(network)({"image": str(tissue)})
    embed_cohort([tissue], tmp_path, "texture", progress=False, **SETTINGS)
    loaded = LoadTreed()({"image": str(tmp_path / "level_2" / "tissue.h5")})
    with torch.no_grad():
        expected = network(loaded["image"][None].float(), return_dict=True)
    assert item["streamed"].keys() == expected.keys()
    for name, value in item["streamed"].items():
        torch.testing.assert_close(value, expected[name][0], rtol=0, atol=1e-6, msg=name)


def test_the_image_has_the_finest_frame_and_no_channel(tissue, tmp_path):
    embed_cohort([tissue], tmp_path, "texture", progress=False, **SETTINGS)
    loaded = LoadTreed()({"image": str(tmp_path / "level_2" / "tissue.h5")})["image"]
    item = descend(Asking())({"image": str(tissue)})
    image = item["image"]
    assert isinstance(image, MetaTensor)
    assert image.shape == (0, loaded.shape[1])
    frames = [{name: str(value) for name, value in found.meta.items()} for found in (image, loaded)]
    assert {**frames[0], "filename_or_obj": ""} == {**frames[1], "filename_or_obj": ""}
    assert collate_bags([item])["mask"].shape == (1, loaded.shape[1])


def test_only_what_is_asked_for_is_encoded(tissue, tmp_path):
    network = Asking(k=2)
    descend(network, CountingEncoder(tmp_path / "log"))({"image": str(tissue)})
    asked = [len(rows) for rows, _ in network.asked]
    assert asked[1:] == [8, 8]
    assert sum(asked) - 16 <= encoded(tmp_path / "log") <= sum(asked), "white tiles beyond the slide count once"


def test_stored_tiles_are_decoded_once_whatever_the_order(tissue, monkeypatch):
    encoder = get_encoder("texture")
    settings = EmbedSettings.for_encoder(encoder, **SETTINGS)
    with open_slide(tissue) as slide:
        for grid in tree_slide(slide, settings)[0].grids:
            decoded, decode = [], TiffPyramid.decode

            def noting(*call, decoded=decoded, decode=decode):
                decoded.append(call[1:3])
                decode(*call)

            with monkeypatch.context() as patch:
                patch.setattr(TiffPyramid, "decode", noting)
                order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(1))
                TreeFeatures(SlideFeatures(slide, grid, encoder, 4, "cpu", "exact"))(order)
            assert len(decoded) == len(set(decoded)) > 1


def test_rows_may_repeat(tissue):
    network = Asking()
    network.descend = lambda sources: {"logits": sources[1](torch.tensor([5, 2, 5, 0]))[None]}
    logits = descend(network)({"image": str(tissue)})["streamed"]["logits"]
    assert logits.shape[0] == 4
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])


def test_networks_and_trees_that_do_not_fit_are_refused(tissue):
    with pytest.raises(SettingsError, match=r"ABMIL reads all tiles of one level; .* a network with descend"):
        descend(ABMIL(76, 2))
    with pytest.raises(
        SettingsError, match=r"Asking needs all tiles at once .* EmbedSlided, or a network with pool_ch"
    ):
        StreamSlided(encoder="texture", network=Asking())
    with pytest.raises(SettingsError, match="overlap 8: must be 0 px"):
        descend(Asking(), overlap=8)
    with pytest.raises(SettingsError, match="gives token maps"):
        descend(Asking(), get_encoder("texture", spatial=True))
    with pytest.raises(SettingsError, match="levels 0"):
        descend(Asking(), levels=0)


def test_a_feature_that_is_no_number_is_told_with_its_tile(tissue):
    calls = []

    def with_nan(features):
        calls.append(features)
        if len(calls) == 2:
            features[1, 3] = torch.nan
        return features

    good = Asking()
    coords = descend(good)({"image": str(tissue)})["coords"]
    x, y = coords[4 + 1].tolist()
    with pytest.raises(EncoderError, match=rf"tissue\.tif': encoder 'texture' gives NaN .* position \({x}, {y}\)"):
        descend(Asking(), spoilt(get_encoder("texture"), with_nan))({"image": str(tissue)})


def test_slides_that_give_nothing_are_named(tissue, tmp_path):
    write_pyramid(tmp_path / "white.tif", np.full((1024, 1024, 3), 245, np.uint8), mpp=0.5)
    with pytest.raises(NoTissueError, match=r"white\.tif': no tissue"):
        descend(Asking())({"image": str(tmp_path / "white.tif")})
    with pytest.raises(SlideReadError, match=r"nowhere\.svs"):
        descend(Asking())({"image": str(tmp_path / "nowhere.svs")})
    damaged = damaged_copy(tissue, tmp_path / "damaged.tif")
    with pytest.raises(SlideReadError, match=r"damaged\.tif'.* cannot be decoded"):
        descend(Asking(k=10_000))({"image": str(damaged)})
