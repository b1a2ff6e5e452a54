"""The classic benchmark: its protocol, and that networks trained side by side learn what each would learn alone."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from monai_mil.datasets import CLASSIC_SETS, ClassicBags
from monai_mil.networks import ABMIL, ASMIL, DSMIL, MaxPooling, MeanPooling, TransMIL
from monai_mil.training import Anchor
from tests.conftest import ROOT
from tests.processes import run


@pytest.fixture
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import classic_mil

    return classic_mil


def planted(name: str = "set", bags: int = 30, width: int = 6, longest: int = 5, seed: int = 0) -> ClassicBags:
    """Noise, and in every second bag one instance whose first feature is high."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, bags)
    starts, labels = np.concatenate([[0], np.cumsum(lengths)]), np.arange(bags) % 2
    features = rng.normal(size=(starts[-1], width)).astype(np.float32)
    features[starts[:-1][labels == 1], 0] += 8
    return ClassicBags(name, features, starts, labels)


def test_folds_are_stratified_seeded_and_test_every_bag_once(experiments):
    bags = planted(bags=92)
    for repetition in range(3):
        ten = list(experiments.folds(bags, repetition))
        assert len(ten) == 10
        assert sorted(np.concatenate([fold.test for fold in ten])) == list(range(92))
        for fold in ten:
            assert set(fold.train) | set(fold.test) == set(range(92))
            assert not set(fold.train) & set(fold.test)
            assert abs(bags.labels[fold.test].mean() - 0.5) < 0.12
        again = list(experiments.folds(bags, repetition))
        assert all(np.array_equal(a.test, b.test) and a.seed == b.seed for a, b in zip(ten, again, strict=True))
    seeds = {fold.seed for repetition in range(5) for fold in experiments.folds(bags, repetition)}
    assert len(seeds) == 50
    assert not np.array_equal(ten[0].test, next(experiments.folds(bags, 0)).test)


def test_statistics_are_those_of_the_training_bags_alone(experiments):
    bags = planted()
    bags.features[:, 5] = 3
    fold = next(experiments.folds(bags, 0))
    mean, spread = fold.statistics()
    rows = np.concatenate([bags.features[bags.rows(bag)] for bag in fold.train])
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(spread[:5], rows.std(axis=0)[:5], rtol=1e-5)
    assert spread[5] == 1
    for bag in fold.test:
        bags.features[bags.rows(bag)] = 1e6
    for one, other in zip(fold.statistics(), (mean, spread), strict=True):
        np.testing.assert_array_equal(one, other)


def alone(method, make, fold, epochs: int) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """What :func:`side_by_side.train` does, for one fold, with one network, bag by bag."""
    bags, (mean, spread) = fold.bags, fold.statistics()

    def image(bag: int) -> torch.Tensor:
        rows = torch.from_numpy(bags.features[bags.rows(bag)])
        return ((rows - torch.from_numpy(mean).float()) / torch.from_numpy(spread).float()).T[None]

    torch.manual_seed(fold.seed)
    network = make(bags.features.shape[1]).double()  # in float32 Adam makes steps of what should be no gradient
    anchor = Anchor(network) if method.anchored else None
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4, weight_decay=1e-5)
    generator = torch.Generator().manual_seed(fold.seed)
    right = np.zeros((epochs, len(fold.test)), dtype=bool)
    for epoch in range(epochs):
        network.train()
        for bag in torch.from_numpy(fold.train)[torch.randperm(len(fold.train), generator=generator)].tolist():
            output = network(image(bag), return_dict=True)
            if anchor is not None:
                output["anchor_logits"] = anchor(image(bag), None, output)
            optimizer.zero_grad()
            method.loss(output, torch.tensor([bags.labels[bag]])).backward()
            optimizer.step()
            if anchor is not None:
                anchor.update()
        network.eval()
        answers = [int(network(image(bag)).argmax()) for bag in fold.test]
        right[epoch] = bags.labels[fold.test] == answers
    return right, dict(network.named_parameters())


NETWORKS = {
    "mean pooling": partial(MeanPooling, num_classes=2, hidden_dim=8),
    "max pooling": partial(MaxPooling, num_classes=2, hidden_dim=8),
    "ABMIL": partial(ABMIL, num_classes=2, hidden_dim=8, attention_dim=4, gated=False),
    "gated ABMIL + anchor": partial(ABMIL, num_classes=2, hidden_dim=8, attention_dim=4),
    "DSMIL + anchor": partial(DSMIL, num_classes=2, query_dim=8),
    "ASMIL": partial(ASMIL, num_classes=2, hidden_dim=8, tokens=2, heads=2, drop=0.0, dropout=0.0),
    "TransMIL + anchor": partial(TransMIL, num_classes=2, hidden_dim=8, heads=2, landmarks=4, dropout=0.0),
}


def without_dropout(experiments, name: str):
    """A method with small networks of float64 that draw nothing while they learn."""
    from experiments import side_by_side

    make = NETWORKS[name]
    whole = partial(side_by_side.WholeABMIL, **make.keywords) if make.func is ABMIL else make
    return replace(experiments.METHODS[name], network=lambda width: whole(width).double())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_trained_side_by_side_learn_what_each_learns_alone(experiments, name):
    from experiments import side_by_side

    make, method = NETWORKS[name], without_dropout(experiments, name)
    few, long = planted(bags=25), planted("long", bags=23, longest=30, seed=1)
    folds = [*list(experiments.folds(few, 0))[4:6], *list(experiments.folds(long, 1))[2:4]]
    assert len({len(fold.train) for fold in folds}) >= 3
    trained = side_by_side.train(method, folds, epochs=2)
    for fold in folds:
        right, parameters = alone(method, make, fold, epochs=2)
        for parameter, value in parameters.items():
            torch.testing.assert_close(trained[fold].parameters[parameter], value.detach(), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(trained[fold].right, right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_learn_the_same_on_a_gpu(experiments, name, monkeypatch):
    method = without_dropout(experiments, name)
    bags = planted(bags=25, longest=90)
    folds = [*list(experiments.folds(bags, 0))[3:7], *list(experiments.folds(planted("few", bags=23), 1))[:3]]
    trained = experiments.train(method, folds, epochs=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = experiments.train(method, folds, epochs=2)
    for fold in folds:
        for parameter, value in on_cpu[fold].parameters.items():
            torch.testing.assert_close(trained[fold].parameters[parameter], value, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(trained[fold].right, on_cpu[fold].right)


@pytest.mark.parametrize("name", ["max pooling", "gated ABMIL", "ASMIL"])
def test_a_planted_instance_is_learnt(experiments, name):
    from experiments import side_by_side

    folds = list(experiments.folds(planted(bags=60), 0))[:3]
    trained = side_by_side.train(experiments.METHODS[name], folds, epochs=8)
    assert np.mean([trained[fold].right[-1].mean() for fold in folds]) > 0.9


def test_the_table_has_every_method_and_a_second_call_trains_nothing(experiments, monkeypatch, tmp_path):
    for seed, name in enumerate(CLASSIC_SETS):
        bags = planted(name, bags=20, seed=seed)
        bag_id = np.repeat(np.arange(20), np.diff(bags.starts))
        np.savez(tmp_path / f"{name}.npz", features=bags.features, bag_id=bag_id, bag_label=bags.labels)
    monkeypatch.setattr(experiments, "EPOCHS", 3)
    names = ("mean pooling", "gated ABMIL")
    methods = {name: experiments.METHODS[name] for name in names}
    table = experiments.compare(tmp_path / "out", tmp_path, methods, [("gated ABMIL", "mean pooling")], repetitions=2)
    rows = table.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:4]] == list(names)
    assert len(rows[3].split("|")) == 9
    for cell in rows[3].split("|")[2:-1]:
        last, best = float(cell.split()[0]), float(cell.split("[")[1].rstrip("] "))
        assert 0 <= last <= best <= 1
    assert "gated ABMIL less mean pooling" in rows[-1]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npz")}
    assert len(written) == 20
    lost = next(iter(written))
    lost.unlink()
    again = experiments.compare(tmp_path / "out", tmp_path, methods, [("gated ABMIL", "mean pooling")], repetitions=2)
    assert again == table  # these methods draw nothing while they train
    assert all(path == lost or path.stat().st_mtime_ns == time for path, time in written.items())


@pytest.mark.usefixtures("fork_server")
def test_an_experiment_on_public_sets_asks_for_their_folder():
    done = run(ROOT / "scripts" / "experiment.py", "classic_mil")
    assert done.returncode == 2
    assert "--data FOLDER" in done.stderr
