import h5py
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.engines import SupervisedTrainer
from monai.transforms import Compose
from torch import Tensor

from monai_mil.bags import BagFile, BagInfo, LoadBagd, PositionsAsFeaturesd, SampleInstancesd, collate_bags
from monai_mil.cohorts import read_cohort
from monai_mil.embedding import EmbedSlided, embed_cohort
from monai_mil.errors import BagError, SlideReadError
from monai_mil.scans import ScanFrame
from monai_mil.synthetic import make_bag_cohort
from tests.embedding.scans import frame

INFO = BagInfo("slide", encoder="texture", mpp=0.25, tile_size_level0=512.0, level0_size=(100, 200))


@pytest.fixture
def bag(tmp_path):
    def write(n: int, width: int = 6, *grid: int, name: str = "slide", info: BagInfo = INFO) -> dict[str, object]:
        features = np.random.default_rng(n).standard_normal((n, width, *grid)).astype(np.float16)
        path = tmp_path / f"{name}.h5"
        BagFile.write(path, features, np.arange(2 * n).reshape(n, 2), info, {"instance_labels": np.arange(n)})
        return {"image": str(path), "label": n % 2, "slide_id": name}

    return write


@pytest.mark.parametrize("grid", [(), (2, 3)])
def test_a_bag_is_loaded_channel_first_with_its_frame(bag, grid):
    item = bag(5, 6, *grid)
    loaded = LoadBagd(width=6, encoder="texture", extras=("instance_labels",))(item)
    with BagFile(item["image"]) as file:
        expected = np.moveaxis(file.features().astype(np.float32), 0, 1)
    assert isinstance(loaded["image"], MetaTensor)
    assert loaded["image"].dtype == torch.float16, "a network widens what it works on"
    np.testing.assert_array_equal(loaded["image"].numpy(), expected)
    assert loaded["coords"].tolist() == np.arange(10).reshape(5, 2).tolist()
    assert loaded["instance_labels"].tolist() == [0, 1, 2, 3, 4]
    meta = loaded["image"].meta
    assert (meta["filename_or_obj"], meta["slide_id"]) == (item["image"], "slide")
    assert (meta["mpp"], meta["tile_size_level0"], meta["level0_size"].tolist()) == (0.25, 512.0, [100, 200])
    assert meta["scan_frame"] == "", "every bag has every key, so that batches collate"
    assert "positions_mm" not in loaded
    assert item["image"].endswith(".h5"), "the input is left as it was"


def test_a_scan_s_bag_brings_its_frame_and_positions(tmp_path):
    scan, path = frame(1000), tmp_path / "scan.h5"
    coords = np.stack([np.arange(1000), np.zeros(1000, int)], axis=1)
    BagFile.write(path, np.ones((1000, 3), np.float16), coords, BagInfo("scan", scan=scan))
    loaded = LoadBagd()({"image": str(path)})
    found = ScanFrame.from_json(loaded["image"].meta["scan_frame"])
    np.testing.assert_array_equal(found.origins, scan.origins)
    assert found.sop_uids == scan.sop_uids
    assert loaded["positions_mm"].dtype == torch.float32
    np.testing.assert_allclose(loaded["positions_mm"], scan.positions_mm, rtol=1e-6)
    assert loaded["coords"][:, 0].tolist() == list(range(1000))


def test_bags_that_do_not_fit_are_named(bag, tmp_path):
    item = bag(5)
    with pytest.raises(BagError, match=r"slide\.h5': 6 feature channels .* takes 8"):
        LoadBagd(width=8)(item)
    with pytest.raises(BagError, match=r"slide\.h5': made by encoder 'texture', .* 'uni'"):
        LoadBagd(encoder="uni")(item)
    with pytest.raises(BagError, match=r"empty\.h5': no instances"):
        LoadBagd()(bag(0, name="empty"))
    with pytest.raises(BagError, match=r"missing\.h5': no such file"):
        LoadBagd()({"image": str(tmp_path / "missing.h5")})


def test_nan_features_of_a_foreign_file_are_named(tmp_path):
    features = np.ones((4, 3), np.float32)
    features[2, 1] = np.nan
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["features"], file["coords"] = features, np.zeros((4, 2), int)
    with pytest.raises(BagError, match=r"foreign\.h5': the features of instance 2 are NaN"):
        LoadBagd()({"image": str(tmp_path / "foreign.h5")})


def write_foreign(path, features):
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, np.stack([np.arange(len(features)), np.arange(len(features))], 1)
        file["instance_labels"] = np.arange(len(features))
    return {"image": str(path)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_instances_with_nan_can_be_left_out_with_all_that_belongs_to_them(tmp_path, caplog, bad):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = torch.from_numpy(features[[0, 1, 3]].T.copy())
    features[2, 1] = bad
    loaded = LoadBagd(non_finite="drop")(write_foreign(tmp_path / "foreign.h5", features))
    assert torch.equal(loaded["image"].as_tensor(), expected)
    assert loaded["coords"][:, 0].tolist() == loaded["instance_labels"].tolist() == [0, 1, 3]
    assert "foreign.h5': 1 of 4 instances have NaN or infinite features and are left out" in caplog.text


def test_instances_with_nan_can_count_as_zero(tmp_path, caplog):
    features = np.ones((4, 3, 2, 2), np.float16)
    features[1, 0, 1, 1] = np.nan
    loaded = LoadBagd(non_finite="zero")(write_foreign(tmp_path / "foreign.h5", features))
    assert loaded["image"].sum(dim=(0, 2, 3)).tolist() == [12, 0, 12, 12]
    assert len(loaded["coords"]) == 4
    assert "count as 0" in caplog.text


def test_a_bag_of_nothing_but_nan_and_an_unknown_way_are_refused(tmp_path):
    item = write_foreign(tmp_path / "foreign.h5", np.full((4, 3), np.nan, np.float32))
    with pytest.raises(BagError, match=r"foreign\.h5': no instance has finite features"):
        LoadBagd(non_finite="drop")(item)
    with pytest.raises(ValueError, match="non_finite must be"):
        LoadBagd(non_finite="ignore")


def test_a_bag_without_encoder_is_taken(bag):
    assert LoadBagd(encoder="texture")(bag(5, info=BagInfo("slide")))["image"].shape == (6, 5)


@pytest.mark.parametrize("grid", [(), (2, 2)])
def test_ragged_bags_are_padded_masked_and_taken_apart_again(bag, grid):
    sizes = [1, 2, 5000]
    load = LoadBagd(extras=("instance_labels",))
    items = [load(bag(n, 6, *grid, name=f"s{n}")) for n in sizes]
    batch = collate_bags(items)
    assert batch["image"].shape == (3, 6, 5000, *grid)
    assert batch["mask"].sum(dim=1).tolist() == sizes
    assert batch["label"].tolist() == [1, 0, 0]
    assert (batch["image"].movedim(1, 2)[~batch["mask"]] == 0).all()
    for item, part, n in zip(items, decollate_batch(batch), sizes, strict=True):
        assert torch.equal(part["image"][:, part["mask"]].as_tensor(), item["image"].as_tensor())
        assert torch.equal(part["coords"][:n], item["coords"])
        assert part["instance_labels"][n:].eq(-1).all()
        assert part["slide_id"] == f"s{n}"
        assert part["image"].meta["filename_or_obj"] == item["image"].meta["filename_or_obj"]


def test_a_batch_of_one_copies_nothing(bag):
    item = LoadBagd()(bag(7))
    batch = collate_bags([item])
    assert batch["image"].data_ptr() == item["image"].data_ptr()
    assert batch["mask"].all()


def test_multi_label_targets_are_stacked_with_unknown_values():
    items = [{"image": torch.ones(2, n), "label": [1.0, float("nan")]} for n in (1, 3)]
    label = collate_bags(items)["label"]
    assert label.shape == (2, 2)
    assert label[:, 1].isnan().all()


def test_sampling_keeps_features_coords_and_labels_together(bag):
    item = LoadBagd(extras=("instance_labels",))(bag(50))
    sampled = SampleInstancesd(num_instances=10).set_random_state(seed=3)(item)
    rows = sampled["instance_labels"]
    assert rows.shape == (10,)
    assert torch.equal(rows, rows.sort().values)
    assert len(set(rows.tolist())) == 10
    assert torch.equal(sampled["image"].as_tensor(), item["image"].as_tensor()[:, rows])
    assert torch.equal(sampled["coords"], item["coords"][rows])
    assert sampled["image"].meta["slide_id"] == "slide"


def test_sampling_is_seeded_and_leaves_small_bags_whole(bag):
    item = LoadBagd(extras=("instance_labels",))(bag(50))
    drawn = [SampleInstancesd(num_instances=10).set_random_state(seed=s)(item)["coords"] for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert SampleInstancesd(num_instances=50)(item)["image"].shape == (6, 50)
    with pytest.raises(ValueError, match="at least 1"):
        SampleInstancesd(num_instances=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_bags_run_through_monai_s_loader_and_trainer(tmp_path, workers):
    table = make_bag_cohort(tmp_path, num_bags=10, width=8, bag_size=(1, 30))
    items = read_cohort(table).datalist("train", tmp_path / "bags")
    dataset = Dataset(items, Compose([LoadBagd(width=8), SampleInstancesd(num_instances=20)]))
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=collate_bags)

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(8, 2)

        def forward(self, image):
            return self.head(image.float().mean(dim=2))

    network = Mean()
    seen: list[str] = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=torch.nn.CrossEntropyLoss(),
        decollate=True,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.extend(part["slide_id"] for part in engine.state.batch)
    )
    trainer.run()
    assert sorted(seen) == sorted(item["slide_id"] for item in items)


def test_embedding_in_memory_equals_embedding_to_disk(slide_cohort, tmp_path):
    path = slide_cohort.parent / "slides" / "slide_001.tif"
    embed_cohort([path], tmp_path, "texture", batch_size=16, progress=False)
    stored = LoadBagd()({"image": str(tmp_path / "slide_001.h5")})
    direct = EmbedSlided(encoder="texture", batch_size=16)({"image": str(path)})
    assert torch.equal(stored["image"].as_tensor(), direct["image"].as_tensor())
    assert torch.equal(stored["coords"], direct["coords"])
    same = ("slide_id", "slide_path", "encoder", "encoder_digest", "mpp", "target_mpp", "tile_size_level0")
    assert all(stored["image"].meta[name] == direct["image"].meta[name] for name in same)


def test_a_slide_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SlideReadError, match=r"nowhere\.svs"):
        EmbedSlided(encoder="texture")({"image": str(tmp_path / "nowhere.svs")})


def test_instance_labels_come_along_where_all_bags_of_a_batch_have_them(tmp_path):
    coords = np.zeros((2, 2), np.int64)
    for name, extras in (("with", {"instance_labels": np.array([1, 0])}), ("without", {})):
        BagFile.write(tmp_path / f"{name}.h5", np.ones((2, 3), np.float16), coords, BagInfo(name), extras)
    labelled, unlabelled = (LoadBagd("image")({"image": tmp_path / f"{name}.h5"}) for name in ("with", "without"))
    assert labelled["instance_labels"].tolist() == [1, 0]
    assert collate_bags([labelled, labelled])["instance_labels"].tolist() == [[1, 0], [1, 0]]
    assert "instance_labels" not in unlabelled
    assert "instance_labels" not in collate_bags([labelled, unlabelled])


def placed(coords: list[list[int]], tile: float | None = None, **more: Tensor) -> Tensor:
    """The two rows of positions of a bag with these coordinates."""
    image = torch.zeros(3, len(coords))
    if tile is not None:
        image = MetaTensor(image, meta={"tile_size_level0": tile})
    item = {"image": image, "coords": torch.tensor(coords), **more}
    extended = PositionsAsFeaturesd("image")(item)["image"]
    assert item["image"].shape == (3, len(coords)), "the input is left as it is"
    assert extended.shape == (5, len(coords))
    assert isinstance(extended, MetaTensor) == (tile is not None)
    return extended[3:]


def test_positions_are_columns_and_rows_of_the_grid_of_tiles() -> None:
    assert placed([[100, 50], [612, 50], [100, 1074]], tile=512.0).tolist() == [[0, 1, 0], [0, 0, 2]]
    assert placed([[100, 50], [356, 50], [868, 306]]).tolist() == [[0, 1, 3], [0, 0, 1]], "256 is the smallest step"
    assert placed([[7, 9]]).tolist() == [[0], [0]]
    assert placed([[3, 0], [4, 0], [6, 0]]).tolist() == [[0, 1, 3], [0, 0, 0]], "slices"


def test_slides_of_a_patient_lie_further_apart_than_neighbours() -> None:
    found = placed([[0, 0], [256, 0], [0, 0]], tile=256.0, slide_index=torch.tensor([0, 0, 1]))
    assert found.tolist() == [[0, 1, 3], [0, 0, 0]]


def test_a_bag_without_coordinates_has_no_positions() -> None:
    with pytest.raises(BagError, match="has no coords"):
        PositionsAsFeaturesd("image")({"image": torch.zeros(3, 2)})
