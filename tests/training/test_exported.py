"""Programs in place of networks: whatever they take and give, the engine sees the network that was exported."""

import pytest
import torch

from monai_mil.errors import SettingsError
from monai_mil.model_card import ModelCard, weights_digest
from monai_mil.networks import ABMIL, HAGMIL, INSIGHT
from monai_mil.training import (
    ExportedNetwork,
    FullOutputInferer,
    Probability,
    UnpackOutputd,
    build_network,
    describe_network,
    fit_weights,
)

N = {2: torch.export.Dim("n", min=2, max=1000)}


@pytest.fixture
def abmil():
    torch.manual_seed(0)
    return ABMIL(6, 2, hidden_dim=8, attention_dim=4).eval().requires_grad_(False)


@pytest.fixture
def insight():
    torch.manual_seed(0)
    return INSIGHT(6, 1, (2, 3), reduced=4, widths=(4, 4, 4)).eval().requires_grad_(False)


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


def padded(*shape):
    mask = torch.ones(2, shape[2], dtype=torch.bool)
    mask[1, 3:] = False
    return torch.randn(2, *shape[1:]), mask


def test_torchscript_gives_the_whole_output_with_masks_and_codes(abmil, insight):
    image, mask = padded(2, 6, 5)
    program = build_network(torch.jit.script(abmil))
    same(program(image.half(), mask, return_dict=True), abmil(image.half(), mask, return_dict=True))
    codes = torch.randint(0, 255, (1, 6, 5, 2, 3), dtype=torch.uint8)
    arguments = {"scale": torch.rand(1, 6) / 99, "offset": torch.randn(1, 6), "return_dict": True}
    tokens = torch.rand(1, 5, 2, 3) > 0.3
    expected = insight(codes, tokens, **arguments)
    same(build_network(torch.jit.script(insight))(codes, tokens, **arguments), expected)


def test_a_trace_is_asked_for_the_real_instances_and_says_that_it_has_no_attention(abmil, caplog):
    image, mask = padded(2, 6, 5)
    program = build_network(torch.jit.trace(abmil, (image[:1],)))
    found = program(image, mask, return_dict=True)
    assert sorted(found) == ["logits", "mask"]
    torch.testing.assert_close(found["logits"], abmil(image, mask), rtol=0, atol=1e-6)
    torch.testing.assert_close(program(image), abmil(image), rtol=0, atol=1e-6)
    assert caplog.text.count("the network's answer alone") == 1


def test_a_program_of_torch_export_gives_what_it_was_exported_with(abmil):
    image, mask = padded(2, 6, 5)
    shapes = {"image": N, "return_dict": None}
    program = torch.export.export(abmil, (image[:1],), {"return_dict": True}, dynamic_shapes=shapes)
    network = build_network(program)
    same(network(image, mask, return_dict=True), abmil(image, mask, return_dict=True))
    assert not network.eval().training
    chunks = [image[0].T[:2], image[0].T[2:]]
    same(network.pool_chunks(chunks), abmil.pool_chunks(chunks))


def test_a_program_with_a_mask_of_tokens_gets_one_and_another_refuses_half_tiles(insight):
    image, instances, tokens = (
        torch.randn(1, 6, 5, 2, 3),
        torch.ones(1, 5, dtype=torch.bool),
        torch.rand(1, 5, 2, 3) > 0.3,
    )
    shapes = {"image": N, "mask": {1: N[2]}}
    masked = build_network(torch.export.export(insight, (image,), {"mask": tokens}, dynamic_shapes=shapes))
    for mask in (tokens, instances, None):
        torch.testing.assert_close(masked(image, mask), insight(image, mask), rtol=0, atol=1e-6)
    plain = build_network(torch.jit.trace(insight, (image,)))
    torch.testing.assert_close(plain(image, instances), insight(image), rtol=0, atol=1e-6)
    with pytest.raises(SettingsError, match="takes no mask of tokens"):
        plain(image, tokens)


def test_a_program_of_several_levels_reads_them_all(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_dims": (8,), "instance_channels": 8, "attention_dim": 4}
    network = HAGMIL(6, 2, levels=2, k_eval=3, **sizes).eval().requires_grad_(False)
    slide = torch.randn(6 * 5, 6)
    sources = [Rows(slide[:6]), Rows(slide[6:])]
    same(build_network(torch.jit.script(network)).descend(sources), network.descend(sources))


class Rows:
    def __init__(self, features):
        self.features = features

    def __len__(self):
        return len(self.features)

    def __call__(self, rows):
        return self.features[rows]


def test_features_that_are_not_finite_are_refused(abmil):
    program = build_network(torch.jit.trace(abmil, (torch.randn(1, 6, 5),)))
    with pytest.raises(ValueError, match="not finite, first in instance 3"):
        program(torch.randn(1, 6, 5).index_fill(2, torch.tensor(3), torch.nan))
    with pytest.raises(ValueError, match="no prediction"):
        program.pool_chunks([])


def test_the_weights_are_the_program_s_own_and_have_to_be_the_run_s(abmil, tmp_path, caplog):
    program = build_network(torch.jit.script(abmil))
    assert weights_digest(program.state_dict()) == weights_digest(abmil.state_dict())
    assert describe_network(program) == {}
    program.load_state_dict(abmil.state_dict())
    others = {name: value + 1 for name, value in abmil.state_dict().items()}
    torch.save(others, tmp_path / "model.pt")
    with pytest.raises(SettingsError, match="other weights than the run's"):
        fit_weights(program, ModelCard(path=tmp_path / "model.pt"))
    probability = build_network(torch.jit.script(Probability(abmil, exclusive=True)))
    with pytest.raises(SettingsError, match="exported from 'network_def'"):
        probability.load_state_dict(abmil.state_dict())
    frozen = build_network(torch.jit.freeze(torch.jit.script(abmil)))
    frozen.load_state_dict(abmil.state_dict())
    assert "hides its weights" in caplog.text


def test_an_inferer_takes_a_program_itself_and_a_postprocessing_its_logits(abmil, insight):
    image = torch.randn(1, 6, 5)
    same(FullOutputInferer()(image, torch.jit.script(abmil)), abmil(image, return_dict=True))
    logits = insight(torch.randn(1, 6, 5, 2, 3))
    item = UnpackOutputd("pred", sigmoid=True)({"pred": logits[0]})
    torch.testing.assert_close(item["pred"], logits[0].sigmoid())


def test_probabilities_are_the_network_s_own_or_those_of_its_logits(abmil, insight):
    image, tokens = torch.randn(1, 6, 5), torch.randn(1, 6, 5, 2, 3)
    for exclusive, expected in ((True, abmil(image).softmax(dim=1)), (False, abmil(image).sigmoid())):
        torch.testing.assert_close(Probability(abmil, exclusive)(image), expected)
    prob = insight(tokens, return_dict=True)["prob"]
    for form in (Probability(insight, False), torch.jit.script(Probability(insight, False))):
        torch.testing.assert_close(form(tokens), prob, rtol=0, atol=1e-6)


def test_what_is_no_program_is_no_exported_network(abmil):
    assert build_network(abmil) is abmil
    assert isinstance(build_network(torch.jit.script(abmil)), ExportedNetwork)
