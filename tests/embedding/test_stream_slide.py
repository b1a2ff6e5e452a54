import types

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.embedding import EmbedSlided, StreamSlided, embed_cohort
from monai_mil.encoders import get_encoder
from monai_mil.errors import EncoderError, NoTissueError, SettingsError, SlideReadError
from monai_mil.networks import ABMIL, DSMIL, INSIGHT, TransMIL
from monai_mil.slides import write_pyramid
from tests.embedding.conftest import damaged_copy, slide_of
from tests.memory import peak_of

CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def encoder():
    return get_encoder("texture", spatial=True)


@pytest.fixture
def tissue(border_slide):
    return border_slide


def whole(network, loaded):
    """What the network says of all tiles at once, without the axis of the batch."""
    mask = loaded.get("token_mask")
    with torch.no_grad():
        arguments = () if mask is None else (mask[None],)
        output = network.eval()(loaded["image"][None], *arguments, return_dict=True)
    return {name: value[0] for name, value in output.items()}


def assert_same_answer(streamed, expected):
    assert streamed.keys() == expected.keys() - {"mask", "token_mask"}
    for name, value in streamed.items():
        torch.testing.assert_close(value, expected[name], **CLOSE, msg=name)


def test_the_streamed_answer_is_that_for_the_bag_on_disk(tissue, encoder, tmp_path):
    network = INSIGHT(38, 2)
    embed_cohort([tissue], tmp_path, encoder, progress=False)
    loaded = LoadBagd()({"image": str(tmp_path / "tissue.h5")})
    item = StreamSlided(encoder=encoder, network=network, batch_size=4)({"image": str(tissue), "label": 1})
    assert_same_answer(item["streamed"], whole(network, loaded))
    assert item["label"] == 1
    assert torch.equal(item["coords"], loaded["coords"])
    assert torch.equal(item["token_mask"], loaded["token_mask"])
    assert not item["token_mask"].all(), "tiles of this slide reach beyond it"
    assert (item["streamed"]["heatmap"][:, ~item["token_mask"]] == 0).all()


def test_the_slides_of_a_patient_are_one_bag_and_a_single_one_is_streamed(tissue, encoder):
    network, slide = INSIGHT(38, 2), {"image": str(tissue), "slide_id": "a"}
    alone = StreamSlided(encoder=encoder, network=network)(slide)
    item = StreamSlided(encoder=encoder, network=network)({"image": [slide], "patient_id": "p", "label": 1})
    assert_same_answer(item["streamed"], alone["streamed"])
    assert (item["patient_id"], item["image"].shape) == ("p", alone["image"].shape)
    embedded = EmbedSlided(encoder=encoder)
    single, both = (embedded({"image": slides, "patient_id": "p"}) for slides in ([slide], [slide, slide]))
    assert torch.equal(both["image"].as_tensor(), torch.cat([single["image"].as_tensor()] * 2, dim=1))
    assert both["slide_index"].bincount().tolist() == [len(alone["coords"])] * 2


def test_the_image_has_the_frame_and_no_channel(tissue, encoder):
    streamed = StreamSlided(encoder=encoder, network=INSIGHT(38))({"image": str(tissue)})["image"]
    embedded = EmbedSlided(encoder=encoder)({"image": str(tissue)})["image"]
    assert isinstance(streamed, MetaTensor)
    assert streamed.shape == (0, *embedded.shape[1:])
    frames = [{name: str(value) for name, value in image.meta.items()} for image in (streamed, embedded)]
    assert frames[0] == frames[1]
    assert collate_bags([{"image": streamed}])["mask"].sum() == embedded.shape[1]


@pytest.mark.parametrize("network", [ABMIL(76, 2, dropout=0.5), DSMIL(76, 2)], ids=["ABMIL", "DSMIL reads twice"])
def test_other_networks_stream_too_and_as_in_evaluation(network, tissue):
    network.train()
    streamed = StreamSlided(encoder="texture", network=network, batch_size=3)({"image": str(tissue)})["streamed"]
    assert network.training, "it is left as it was"
    assert_same_answer(streamed, whole(network, EmbedSlided(encoder="texture")({"image": str(tissue)})))


def test_a_network_that_needs_all_tiles_is_refused():
    with pytest.raises(SettingsError, match=r"TransMIL needs all tiles at once .* EmbedSlided"):
        StreamSlided(encoder="texture", network=TransMIL(76, 2))


def test_an_encoder_that_does_not_fit_the_network_ends_the_run(tissue, encoder):
    """Every slide would fail alike: this is no bad case to be left out."""
    with pytest.raises(ValueError, match=r"INSIGHT takes bags \[b, 38, n, h, w\], got \[1, 76, "):
        StreamSlided(encoder="texture", network=INSIGHT(38))({"image": str(tissue)})
    with pytest.raises(ValueError, match=r"grid 16 x 16, the bag has 14 x 14"):
        StreamSlided(encoder=encoder, network=INSIGHT(38, grid=(16, 16)))({"image": str(tissue)})


def test_memory_does_not_grow_with_the_tiles(encoder, tmp_path):
    """The features of the larger slide's tiles take 120 MB in float16, the map and its logits 2 MB."""
    wide = spoilt(encoder, lambda features: features.repeat(1, 8, 1, 1))
    wide.width = 38 * 8
    network = INSIGHT(38 * 8, reduced=16, widths=(16, 8, 8))
    stream = StreamSlided(encoder=wide, network=network, tile_size=32, batch_size=32)
    small, large = slide_of(tmp_path / "small.tif", 640, 640), slide_of(tmp_path / "large.tif", 1280, 1280)
    assert stream({"image": str(small)})["image"].shape[1] < 250
    tiles = []
    few, many = (
        peak_of(lambda path=path: tiles.append(stream({"image": str(path)})["image"].shape[1]))
        for path in (small, large)
    )
    assert tiles[-1] > 1000
    assert many - few < 30e6


def test_a_feature_that_is_no_number_is_told_with_its_tile(tissue, encoder):
    def with_nan(features):
        features[-1, 3, 0, 0] = torch.nan
        return features

    stream = StreamSlided(encoder=spoilt(encoder, with_nan), network=INSIGHT(38), batch_size=2)
    x, y = EmbedSlided(encoder=encoder)({"image": str(tissue)})["coords"][1].tolist()
    with pytest.raises(EncoderError, match=rf"tissue\.tif': encoder 'texture' gives NaN .* position \({x}, {y}\)"):
        stream({"image": str(tissue)})


def test_slides_that_give_nothing_are_named(encoder, tmp_path):
    stream = StreamSlided(encoder=encoder, network=INSIGHT(38), batch_size=2)
    write_pyramid(tmp_path / "white.tif", np.full((1024, 1024, 3), 245, np.uint8), mpp=0.5)
    with pytest.raises(NoTissueError, match=r"white\.tif': no tissue"):
        stream({"image": str(tmp_path / "white.tif")})
    with pytest.raises(SlideReadError, match=r"nowhere\.svs"):
        stream({"image": str(tmp_path / "nowhere.svs")})


def test_a_slide_damaged_in_its_middle_is_named(tissue, encoder, tmp_path):
    damaged = damaged_copy(tissue, tmp_path / "damaged.tif")
    with pytest.raises(SlideReadError, match=r"damaged\.tif'.* cannot be decoded"):
        StreamSlided(encoder=encoder, network=INSIGHT(38), batch_size=2)({"image": str(damaged)})


def spoilt(encoder, change):
    """The encoder with its features changed."""
    fields = ("name", "digest", "width", "grid", "tile_size", "target_mpp", "device")
    made = type("Spoilt", (types.SimpleNamespace,), {"__call__": lambda self, tiles: change(encoder(tiles))})
    return made(**{name: getattr(encoder, name) for name in fields})
