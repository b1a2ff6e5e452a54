import sys
from dataclasses import replace

import pytest
import torch

from monai_mil.encoders import encoder_report, get_encoder, list_encoders
from monai_mil.encoders.backbones import architecture
from monai_mil.encoders.cards import CARDS
from monai_mil.errors import EncoderError
from tests.processes import run_alone

_NETWORKS = [name for name, card in CARDS.items() if card.needs]


def test_the_registry_lists_every_encoder_promised():
    assert set(CARDS) >= {
        *("texture", "uni", "uni2_h", "virchow2", "conch_v15", "gigapath", "h_optimus_1", "phikon_v2"),
        *("lunit_vits16", "dinov2_vitl14_reg", "resnet50_clam", "resnet18", "swin_large"),
        *("ct_texture", "ct_texture_518", "vit_b16_ct", "efficientnet_lite0"),
    }
    assert [card.name for card in list_encoders()] == list(CARDS)


def test_listing_and_importing_load_neither_torch_nor_timm():
    code = (
        "import sys; from monai_mil.encoders import list_encoders; list_encoders(); "
        "print(sorted({'torch', 'timm', 'monai', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = run_alone("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(CARDS))
def test_cards_say_where_their_facts_and_weights_come_from(name):
    card = CARDS[name]
    assert card.source
    assert card.licence
    assert (
        card.repo
        or card.url
        or card.package
        or name in ("texture", "ct_texture", "ct_texture_518", "ct_pixels", "tile_pixels")
    )
    assert card.width
    assert card.token_width
    assert min(card.grid) > 1


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", _NETWORKS)
def test_every_architecture_gives_what_its_card_says(timm, name, spatial):
    card = CARDS[name]
    side = card.preprocessing.input_size
    with torch.device("meta"):
        features = architecture(card, spatial).eval()(torch.empty(2, card.channels, side, side))
    assert tuple(features.shape) == (2, *card.grid, card.token_width) if spatial else (2, card.width)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("uni", 303),
        ("uni2_h", 681),
        ("virchow2", 631),
        ("gigapath", 1135),
        ("h_optimus_1", 1135),
        ("conch_v15", 307),
        ("lunit_vits16", 21.7),
    ],
)
def test_every_architecture_has_the_published_number_of_parameters(timm, name, millions):
    with torch.device("meta"):
        model = architecture(CARDS[name], spatial=False)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_maps_leave_class_and_register_tokens_out(timm):
    """Mark the tokens by number and see which arrive: UNI2-h has one class and eight register tokens."""
    card = CARDS["uni2_h"]
    with torch.device("meta"):
        reader = architecture(card, spatial=True)
        vector = architecture(card, spatial=False)
    numbers = torch.arange(1 + 8 + 256.0).view(1, -1, 1).expand(1, -1, 4)
    reader.network.forward_features = lambda images: numbers
    grid = reader(torch.empty(1, 3, 224, 224))
    assert torch.equal(grid[0, :, :, 0].flatten(), torch.arange(9, 265.0))
    assert grid.untyped_storage().data_ptr() == numbers.untyped_storage().data_ptr()
    vector.network.forward_features = lambda images: numbers
    assert vector(torch.empty(1, 3, 224, 224))[0, 0] == 0


def test_virchow2_pools_class_token_beside_mean_of_patch_tokens(timm):
    with torch.device("meta"):
        reader = architecture(CARDS["virchow2"], spatial=False)
    numbers = torch.arange(1 + 4 + 256.0).view(1, -1, 1).expand(1, -1, 1280)
    reader.network.forward_features = lambda images: numbers
    pooled = reader(torch.empty(1, 3, 224, 224))
    assert pooled.shape == (1, 2560)
    assert pooled[0, 0] == 0
    assert pooled[0, 1280] == numbers[0, 5:, 0].mean()


def test_the_report_says_what_each_encoder_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    report = {status.card.name: status for status in encoder_report()}
    assert set(report) == set(CARDS)
    assert report["texture"].ready
    assert report["ct_texture"].ready
    assert not report["vit_b16_ct"].cached
    assert not report["texture"].problem
    assert not report["uni"].ready
    assert not report["uni"].cached
    assert report["uni"].card.gated
    assert not report["resnet18"].card.gated


@pytest.mark.parametrize("absent", ["timm", "torchvision"])
def test_without_timm_the_error_says_what_to_install(monkeypatch, absent):
    for module in [m for m in sys.modules if m.split(".")[0] in ("timm", "torchvision")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(EncoderError, match=r"pip install 'monai-mil\[encoders\]'"):
        get_encoder("resnet18")
    assert "monai-mil[encoders]" in next(s.problem for s in encoder_report() if s.card.name == "uni")
    assert get_encoder("texture").name == "texture"


def test_a_torchvision_of_another_torch_is_told(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for module in [m for m in sys.modules if m.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        EncoderError, match=r"torchvision does not fit torch .* \(operator torchvision::nms .*install the"
    ):
        get_encoder("resnet18")


def test_unknown_names_are_answered_with_the_known_ones(timm):
    with pytest.raises(EncoderError, match=r"'unni': unknown; use one of texture, .*uni,.*'timm:<model>'"):
        get_encoder("unni")
    with pytest.raises(EncoderError, match=r"timm .* has no such model"):
        get_encoder("timm:unni")


def test_a_device_that_is_absent_is_an_error():
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(EncoderError, match=f"device '{absent}' is not available"):
        get_encoder("texture", device=absent)


def test_what_is_no_device_is_an_error():
    with pytest.raises(EncoderError, match="'gpu' is no device; use 'cpu', 'cuda'"):
        get_encoder("texture", device="gpu")


def test_a_changed_card_is_an_encoder_of_its_own():
    card = CARDS["texture"]
    other = replace(card, name="texture_bicubic", preprocessing=replace(card.preprocessing, interpolation="bicubic"))
    assert get_encoder(other).digest != get_encoder("texture").digest
