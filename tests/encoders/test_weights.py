import hashlib
import math
import pickle
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from monai_mil.encoders import get_encoder
from monai_mil.encoders.backbones import _adapt, _from_transformers, architecture
from monai_mil.encoders.cards import CARDS
from monai_mil.encoders.conch import AttentionPool, resample_positions
from monai_mil.encoders.weights import read_weights, weight_file
from monai_mil.errors import EncoderError
from tests.encoders.conftest import random_tiles


def test_features_are_those_of_the_plain_timm_network(timm, resnet18_file):
    tiles = random_tiles(3, 224)
    network = timm.create_model("resnet18", pretrained=False, num_classes=0)
    network.load_state_dict(load_file(resnet18_file), strict=False)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.inference_mode():
        images = (tiles / 255 - mean) / std
        vectors, maps = network.eval()(images), network.forward_features(images)
    pooled = get_encoder("resnet18", weights=resnet18_file)(tiles)
    spatial = get_encoder("resnet18", weights=resnet18_file, spatial=True)(tiles)
    torch.testing.assert_close(pooled.float(), vectors, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(spatial.float(), maps, atol=2e-3, rtol=2e-3)


def test_maps_are_token_major_in_memory(resnet18_file):
    features = get_encoder("resnet18", weights=resnet18_file, spatial=True)(random_tiles(2, 224))
    assert features.shape == (2, 512, 7, 7)
    assert features.permute(0, 2, 3, 1).is_contiguous()


@pytest.fixture(scope="module")
def together(resnet18_file):
    """17 tiles and their features as one batch."""
    tiles = random_tiles(17, 224)
    return tiles, get_encoder("resnet18", weights=resnet18_file)(tiles)


@pytest.mark.parametrize("count", [1, 5, 16, 17])
def test_batch_size_changes_nothing_but_rounding(resnet18_file, together, count):
    encoder = get_encoder("resnet18", weights=resnet18_file)
    tiles, features = together
    parts = torch.cat([encoder(part) for part in tiles.split(count)])
    torch.testing.assert_close(parts, features, atol=2e-3, rtol=2e-3)
    assert count < 17 or torch.equal(parts, features), "the same batch"


def test_no_tiles_give_no_features(resnet18_file):
    assert get_encoder("resnet18", weights=resnet18_file)(random_tiles(0, 224)).shape == (0, 512)


def test_bfloat16_agrees_with_float32(resnet18_file):
    tiles = random_tiles(4, 224)
    exact = get_encoder("resnet18", weights=resnet18_file)
    fast = get_encoder("resnet18", weights=resnet18_file, dtype=torch.bfloat16)
    assert F.cosine_similarity(exact(tiles).float(), fast(tiles).float()).min() >= 0.999
    assert exact.digest == fast.digest
    assert get_encoder("resnet18", weights=resnet18_file, dtype="bfloat16").dtype == fast.dtype


def test_lunit_weights_load_by_the_same_path(timm, tmp_path):
    torch.manual_seed(1)
    network = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0)
    torch.save({"teacher": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "lunit.torch")
    encoder = get_encoder("lunit_vits16", weights=tmp_path / "lunit.torch", spatial=True)
    assert encoder(random_tiles(1, 256)).shape == (1, 384, 14, 14)


def test_swin_and_resnet50_load_although_their_files_hold_more(timm, tmp_path):
    """Classifier and fourth stage are in the file; Swin has buffers that are not."""
    swin_tiny = replace(CARDS["swin_large"], architecture="swin_tiny_patch4_window7_224", token_width=768)
    for card in (CARDS["resnet50_clam"], swin_tiny):
        path = tmp_path / f"{card.name}.safetensors"
        save_file(timm.create_model(card.architecture, pretrained=False).state_dict(), path)
        features = get_encoder(card, weights=path, spatial=True)(random_tiles(1, 224))
        assert features.shape == (1, card.token_width, *card.grid)
        assert torch.isfinite(features).all()


def test_a_timm_model_by_name_learns_its_width(timm, tmp_path):
    path = tmp_path / "convnext.safetensors"
    save_file(timm.create_model("convnext_atto", pretrained=False).state_dict(), path)
    encoder = get_encoder("timm:convnext_atto", weights=path)
    assert encoder.width == 320
    assert encoder(random_tiles(2, 224)).shape == (2, 320)
    spatial = get_encoder("convnext_atto", weights=path, spatial=True)
    assert spatial.grid == (7, 7)
    assert spatial.digest == encoder.digest


def test_digest_changes_with_one_weight(resnet18_file, tmp_path):
    state = load_file(resnet18_file)
    state["layer1.0.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    torch.save(load_file(resnet18_file), tmp_path / "same.bin")
    digest = get_encoder("resnet18", weights=resnet18_file).digest
    assert get_encoder("resnet18", weights=tmp_path / "other.safetensors").digest != digest
    assert get_encoder("resnet18", weights=tmp_path / "same.bin").digest == digest
    assert get_encoder("resnet18", weights=resnet18_file, spatial=True).digest == digest


def test_weights_of_another_architecture_are_refused(timm, resnet18_file):
    with pytest.raises(EncoderError, match=r"resnet18.safetensors' is not of this architecture \(Missing key"):
        get_encoder("lunit_vits16", weights=resnet18_file)


def test_missing_and_damaged_files_are_named(timm, tmp_path):
    with pytest.raises(EncoderError, match="does not exist"):
        get_encoder("resnet18", weights=tmp_path / "none.safetensors")
    for name in ("a.safetensors", "a.bin"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(EncoderError, match=f"{name}' (cannot be read|is damaged)"):
            get_encoder("resnet18", weights=tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(EncoderError, match="holds no state dict"):
        get_encoder("resnet18", weights=tmp_path / "list.pt")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (type(marker).touch, (marker,))

    torch.save({"weight": Attack()}, tmp_path / "attack.bin", pickle_module=pickle)
    with pytest.raises(EncoderError, match="could run code"):
        read_weights(tmp_path / "attack.bin", "uni")
    assert not marker.exists()


@pytest.mark.parametrize(("name", "words"), [("uni", "request access"), ("resnet18", "without a network")])
def test_offline_the_error_says_how_to_get_the_weights(timm, monkeypatch, tmp_path, name, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match=f"'{CARDS[name].repo}'.*{words}.*weights=FILE"):
        get_encoder(name)


def test_weights_are_taken_from_the_hub_s_cache(timm, resnet18_file, monkeypatch, tmp_path):
    repo = tmp_path / "models--timm--resnet18.tv_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "model.safetensors").write_bytes(resnet18_file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert get_encoder("resnet18").digest == get_encoder("resnet18", weights=resnet18_file).digest


def test_a_card_without_a_place_needs_a_file(resnet18_file):
    card = replace(CARDS["resnet18"], repo=None)
    with pytest.raises(EncoderError, match="'resnet18': no place to download weights from is known; pass weights=FILE"):
        weight_file(card, None)
    assert weight_file(card, resnet18_file) == resnet18_file


def test_without_the_hub_s_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EncoderError, match=r"'uni': downloading needs huggingface-hub; .*'monai-mil\[encoders\]'"):
        weight_file(CARDS["uni"], None)


def test_a_repository_s_files_are_tried_in_turn(monkeypatch, tmp_path):
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def hub(repo, name):
        asked.append((repo, name))
        if name != there:
            raise EntryNotFoundError(f"{name} is not there")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    card = replace(CARDS["resnet18"], files=("a.safetensors", "b.bin", "c.bin"))
    there = "b.bin"
    assert weight_file(card, None) == tmp_path / "b.bin"
    assert asked == [(card.repo, "a.safetensors"), (card.repo, "b.bin")]
    there = "none of them"
    with pytest.raises(EncoderError, match=r"\(EntryNotFoundError\).*fetch a.safetensors or b.bin or c.bin elsewhere"):
        weight_file(card, None)


def test_a_hub_that_refuses_is_asked_once(monkeypatch):
    asked = []

    def hub(repo, name):
        asked.append(name)
        raise PermissionError("401")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    with pytest.raises(
        EncoderError, match=r"\(PermissionError\); request access on the repository's page, log in with"
    ):
        weight_file(CARDS["uni"], None)
    assert len(asked) == 1


def test_a_file_of_a_url_is_downloaded_once(monkeypatch, tmp_path):
    content = b"weights"
    served = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    served.write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    card = replace(CARDS["vit_b16_ct"], url=served.as_uri())
    found = weight_file(card, None)
    assert (found.name, found.read_bytes()) == (served.name, content)
    served.unlink()
    assert weight_file(card, None) == found


def test_transformers_names_become_timm_s(timm, tmp_path):
    """Phikon-v2 is published in transformers' names; its query, key and value are separate there."""
    torch.manual_seed(2)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, init_values=1e-5)
    ours = network.state_dict()
    theirs = {"embeddings.mask_token": torch.zeros(1, 192)}
    for key, value in ours.items():
        if ".attn.qkv." in key:
            layer = key.split(".")[1]
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[f"encoder.layer.{layer}.attention.attention.{part}.{key.rsplit('.')[-1]}"] = piece
            continue
        for old, new in (
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
        ):
            key = key.replace(old, new)
        theirs["layernorm." + key.removeprefix("norm.") if key.startswith("norm.") else key] = value
    back = _from_transformers(theirs)
    assert set(back) == set(ours)
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    small = {"architecture": "vit_tiny_patch16_224", "width": 192, "options": {"init_values": 1e-5}}
    digests = set()
    for name, state in (("theirs", theirs), ("ours", ours)):
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        digests.add(get_encoder(replace(CARDS["phikon_v2"], **small), weights=path).digest)
    assert len(digests) == 1


def test_conch_pools_as_published():
    """The attention query written out: scaled, softmax over all tokens, eight heads."""
    torch.manual_seed(3)
    pool = AttentionPool().eval()
    torch.nn.init.normal_(pool.query)
    tokens = torch.randn(2, 50, 1024)
    query = pool.to_q(pool.ln_q(pool.query)) * (768 // 8) ** -0.5
    key, value = pool.to_kv(pool.ln_k(tokens)).chunk(2, dim=-1)
    heads = []
    for head in range(8):
        part = slice(96 * head, 96 * (head + 1))
        weights = torch.softmax(torch.einsum("qd,bnd->bqn", query[:, part], key[..., part]), dim=-1)
        heads.append(weights @ value[..., part])
    expected = pool.to_out(torch.cat(heads, dim=-1))[:, 0]
    torch.testing.assert_close(pool(tokens), expected, atol=1e-5, rtol=1e-4)


def test_conch_names_are_those_of_the_published_file(timm):
    with torch.device("meta"):
        names = set(architecture(CARDS["conch_v15"], spatial=False).state_dict())
    assert {name.split(".")[0] for name in names} == {"trunk", "attn_pool_contrast", "ln_contrast"}
    assert {name for name in names if name.startswith("attn_pool")} == {
        f"attn_pool_contrast.{part}"
        for part in (
            *("query", "ln_q.weight", "ln_q.bias", "ln_k.weight", "ln_k.bias"),
            *("to_q.weight", "to_kv.weight", "to_out.weight"),
        )
    }


def test_conch_positions_grow_from_14_to_28():
    rows = torch.arange(14.0).repeat_interleave(14)
    positions = torch.cat([torch.full((1, 1, 1), -5.0), rows.view(1, 196, 1)], dim=1)
    grown = resample_positions(positions)
    assert grown.shape == (1, 1 + 28 * 28, 1)
    assert grown[0, 0, 0] == -5
    exact = F.interpolate(rows.view(1, 1, 14, 14), size=28, mode="bicubic")[0, 0, 4:24, 0]
    middle = grown[0, 1:, 0].view(28, 28)[4:24, 0]
    expected_shift = (torch.arange(4, 24) + 0.5) * (14 / 28.1 - 14 / 28)
    assert float((middle - exact).mean()) == pytest.approx(float(expected_shift.mean()), rel=0.1)
    assert resample_positions(grown) is grown
    adapted = _adapt({"trunk.pos_embed": positions}, torch.nn.Module(), CARDS["conch_v15"])
    assert torch.equal(adapted["trunk.pos_embed"], grown)
    assert math.isclose(float(grown[0, 1:, 0].view(28, 28).std(1).max()), 0, abs_tol=1e-5)
