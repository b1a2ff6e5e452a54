from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_mil.encoders import get_encoder
from monai_mil.errors import EncoderError
from tests.conftest import shared
from tests.encoders.conftest import random_tiles


def reference_tile() -> torch.Tensor:
    """A tile made of integers only, the same everywhere."""
    y, x = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    red = 255 - (x * y) % 97
    green = 200 - ((x // 16 + y // 16) % 2) * 120
    blue = 230 - (x + 2 * y) % 41
    return torch.stack([red, green, blue])[None].to(torch.uint8)


@pytest.mark.parametrize(("spatial", "shape"), [(False, (3, 76)), (True, (3, 38, 14, 14))])
def test_shapes_are_those_of_the_card(spatial, shape):
    encoder = get_encoder("texture", spatial=spatial)
    features = encoder(random_tiles(3, 224))
    assert features.shape == shape
    assert features.dtype == torch.float16
    assert encoder.width == shape[1]
    assert encoder.grid == (shape[2:] or None)


def test_the_numbers_of_this_version_never_change():
    encoder = get_encoder("texture")
    assert encoder.digest == "2252cf35bb0521d9"
    expected = torch.tensor([-0.854, 0.246, -0.719, -0.861, -1.219, -0.975, -1.018, -0.916, -1.197, -1.018])
    torch.testing.assert_close(encoder(reference_tile())[0, ::8].float(), expected, atol=5e-3, rtol=2e-3)


def test_the_pooled_vector_is_mean_and_spread_of_the_map():
    tiles = random_tiles(2, 224)
    tokens = get_encoder("texture", spatial=True)(tiles).float().flatten(2)
    pooled = get_encoder("texture")(tiles).float()
    torch.testing.assert_close(pooled[:, :38], tokens.mean(2), atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(pooled[:, 38:], 2 * tokens.std(2) - 1.5, atol=5e-3, rtol=2e-3)


def test_a_tile_s_features_do_not_depend_on_its_batch():
    encoder = get_encoder("texture")
    tiles = random_tiles(9, 224)
    alone = torch.cat([encoder(tile[None]) for tile in tiles])
    assert torch.equal(encoder(tiles), alone)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_neither_features_nor_torch_s_settings(threads):
    encoder = get_encoder("texture")
    tiles = random_tiles(9, 224)
    expected = encoder(tiles)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(encoder(tiles), expected)
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


def test_the_token_map_follows_the_tile():
    """A dark square in one cell changes tokens there and leaves the far corner as it was."""
    encoder = get_encoder("texture", spatial=True)
    plain = torch.full((1, 3, 224, 224), 220, dtype=torch.uint8)
    marked = plain.clone()
    marked[:, :, 2 * 16 + 4 : 2 * 16 + 12, 11 * 16 + 4 : 11 * 16 + 12] = 60
    change = (encoder(marked) - encoder(plain)).float().abs().amax(1)[0]
    assert change.argmax() == 2 * 14 + 11
    assert change[10:, :4].max() == 0


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_tiles_give_finite_bounded_features(value):
    tile = torch.full((1, 3, 224, 224), value, dtype=torch.uint8)
    tokens = get_encoder("texture", spatial=True)(tile)
    assert torch.isfinite(tokens).all()
    assert tokens.abs().max() <= 8


@pytest.mark.parametrize("side", [1, 7, 97, 223, 256, 513])
def test_any_tile_size_is_taken(side):
    features = get_encoder("texture")(random_tiles(2, side))
    assert features.shape == (2, 76)
    assert torch.isfinite(features).all()


def test_weights_for_texture_are_refused(tmp_path):
    with pytest.raises(EncoderError, match="has no weights"):
        get_encoder("texture", weights=tmp_path / "w.safetensors")


def test_tumour_is_told_from_normal_tissue():
    """CAMELYON16 tiles: 44 with tumour, 45 without, of five slides."""
    folder = shared("data/camelyon16_patches_dldp")
    paths = {label: sorted((folder / label).glob("*.png")) for label in ("normal", "tumor")}
    tiles = [cv2.imread(str(path))[..., ::-1] for path in paths["normal"] + paths["tumor"]]
    labels = np.repeat([0, 1], [len(paths["normal"]), len(paths["tumor"])])
    features = get_encoder("texture")(torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)).float().numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    aurocs = []
    for seed in range(3):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        scores = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")[:, 1]
        aurocs.append(roc_auc_score(labels, scores))
    assert np.mean(aurocs) >= 0.88, aurocs
    # Values a network can be trained on as they are.
    assert np.abs(features).mean() < 1.5
    assert features.std(0).max() < 3
