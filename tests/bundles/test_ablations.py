"""The ablations of the papers, as the docs of the bundles say them: each line of their tables builds and steps."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.bundles.common import BUNDLES, EXAMPLES, network_width, workflow

SETTINGS = {"pathology_hagmil": {"k_train": 2, "k_eval": 2}}


def ablations(name: str) -> dict[str, dict[str, str]]:
    """The table below "Ablations" in a bundle's docs: what is changed, and the options that change it."""
    readme = (BUNDLES / name / "docs" / "README.md").read_text()
    section = readme.partition("### Ablations")[2].partition("\n#")[0]
    found = re.findall(r"^\| ([^|`]+) \| `(--[^`]+)` \|", section, re.MULTILINE)
    words = {title: shlex.split(options) for title, options in found}
    return {
        title: dict(zip((w.removeprefix("--") for w in said[::2]), said[1::2], strict=True))
        for title, said in words.items()
    }


LINES = [(name, title) for name in sorted(EXAMPLES) for title in ablations(name)]


@pytest.fixture(scope="module")
def cohort_of(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = EXAMPLES[name].cohort(tmp_path_factory.mktemp(name), network_width(name)).parent
        return made[name]

    return folder


def test_the_bundles_of_the_papers_have_their_ablations():
    counts = {name: len(ablations(name)) for name in EXAMPLES}
    assert {name for name, count in counts.items() if count >= 4} == {
        "ct_normal_guidance",
        "pathology_asmil",
        "pathology_hagmil",
        "pathology_insight",
    }


@pytest.mark.parametrize(("name", "title"), LINES, ids=[f"{name}-{title}" for name, title in LINES])
def test_an_ablation_of_the_docs_is_built_and_makes_a_step(name, title, cohort_of, tmp_path):
    example, options = EXAMPLES[name], ablations(name)[title]
    two = {"train::dataset::data": "$@cohort.datalist('train', @bag_dir)[:2]", "val_interval": 99}
    if name == "pathology_hagmil":
        two["train::dataset::data"] = "$@cohort.datalist('train', @coarsest_dir)[:2]"
    given = {**example.options(cohort_of(name), tmp_path), **SETTINGS.get(name, {}), **two, **options}
    run = workflow(name, ["train"], **given, **{"train::trainer::max_epochs": 1})
    trainer = run.parser.get_parsed_content("train::trainer")
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    trainer.run()
    assert any((old != new).any() for old, new in zip(before, trainer.network.parameters(), strict=True))
