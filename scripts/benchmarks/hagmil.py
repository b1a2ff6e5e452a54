"""HAG-MIL: one level beside the same network with explicit matrices, and a slide read lazily beside one read whole.

Every variant runs in a process of its own, on one thread and the same bag; their answers are compared first. Memory is
measured with ``MALLOC_MMAP_THRESHOLD_`` fixed: by default glibc raises it and keeps freed tensors of up to 32 MB, which
says more of the order of allocations than of what a step needs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Figure
from benchmarks.iat_plain import PlainIAT
from benchmarks.memory import in_a_process, peak_growth
from benchmarks.tiles import write_synthetic_slide
from monai_mil.embedding import EmbedSettings, tree_slide
from monai_mil.embedding.descend_slide import TreeFeatures
from monai_mil.embedding.stream_slide import SlideFeatures
from monai_mil.encoders import get_encoder
from monai_mil.networks import HAGMIL, IAT
from monai_mil.slides import open_slide

_N, _WIDTH = 16_000, 1024
_SLIDE, _TILE, _OPENED = 22_528, 64, 1000


def run() -> list[Figure]:
    _check_equal()
    return _network() + _slide()


def _check_equal() -> None:
    torch.manual_seed(0)
    ours = IAT(96, 2, (64, 96)).eval()
    image = torch.randn(1, 96, 777)
    output = ours(image, return_dict=True)
    logits, evidence = PlainIAT(ours)(image.mT)
    torch.testing.assert_close(output["logits"], logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output["instance_logits"], evidence, rtol=0, atol=1e-5)


def _network() -> list[Figure]:
    memory, seconds = {}, {}
    for variant in ("plain-train", "ours-train", "checkpoint-train", "plain-infer", "ours-infer"):
        memory[variant] = in_a_process("benchmarks.hagmil", variant, "memory", MALLOC_MMAP_THRESHOLD_="1048576")
        seconds[variant] = in_a_process("benchmarks.hagmil", variant, "seconds")
    return [
        Figure(f"IAT training step, n = {_N}, {_WIDTH} wide", seconds["ours-train"], "CPU s"),
        Figure(
            "  with explicit matrices takes longer by", seconds["plain-train"] / seconds["ours-train"], "times", ">= 1"
        ),
        Figure("  memory of it", memory["ours-train"], "MB"),
        Figure("  share of explicit matrices'", memory["ours-train"] / memory["plain-train"], "fraction", "<= 0.65"),
        Figure("  share, checkpointed", memory["checkpoint-train"] / memory["plain-train"], "fraction", "<= 0.4"),
        Figure("  checkpointed takes longer by", seconds["checkpoint-train"] / seconds["ours-train"], "times"),
        Figure("IAT evaluation of the same", seconds["ours-infer"], "CPU s"),
        Figure(
            "  with explicit matrices takes longer by", seconds["plain-infer"] / seconds["ours-infer"], "times", ">= 1"
        ),
        Figure("  memory of it", memory["ours-infer"], "MB"),
        Figure("  share of explicit matrices'", memory["ours-infer"] / memory["plain-infer"], "fraction", "<= 0.45"),
    ]


def _slide() -> list[Figure]:
    """A slide of thousands of coarse tiles, its finer ones encoded where attention leads or all of them."""
    torch.manual_seed(0)
    encoder = get_encoder("texture")
    network = HAGMIL(encoder.width, 2, k_eval=_OPENED, hidden_dims=(64, 96, 32, 64)).eval()
    settings = EmbedSettings(_TILE, 0.5, levels=3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_synthetic_slide(path, _SLIDE)
        with open_slide(path) as slide:
            started = time.perf_counter()
            tree, _ = tree_slide(slide, settings)
            levels = [SlideFeatures(slide, grid, encoder, 256, "cpu") for grid in tree.grids]
            lazy = network.descend([TreeFeatures(level) for level in levels])
            lazy_seconds = time.perf_counter() - started
            started = time.perf_counter()
            features = torch.cat([batch for level in levels for batch in level])
            with torch.no_grad():
                whole = network(features.T[None], return_dict=True)
            whole_seconds = time.perf_counter() - started
    torch.testing.assert_close(lazy["logits"], whole["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(lazy["instance_scores"], whole["instance_scores"])
    seen = int(lazy["attention_logits"].isfinite().sum())
    return [
        Figure("HAG-MIL on a slide, coarsest tiles of it", len(tree.grids[0]), "tiles", ">= 2500"),
        Figure(f"  encoded with {_OPENED} opened a level, of all", seen / len(tree), "fraction", "<= 0.25"),
        Figure("  raw slide to answer, lazily", lazy_seconds, "s"),
        Figure("  all tiles encoded takes longer by", whole_seconds / lazy_seconds, "times"),
    ]


def _measure() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("variant")
    parser.add_argument("what", choices=("memory", "seconds"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, mode = arguments.variant.split("-")
    ours = IAT(_WIDTH, 2, checkpoint=kind == "checkpoint").eval()  # dropout is the same for all and left out
    network = PlainIAT(ours) if kind == "plain" else ours
    image = torch.randn(_N, _WIDTH).T[None]

    def answer() -> Tensor:
        if kind == "plain":
            logits, evidence = network(image.mT)
        else:
            output = network(image, return_dict=True)
            logits, evidence = output["logits"], output["instance_logits"]
        return logits.square().sum() + evidence[:, :, :16].square().sum()

    def step() -> None:
        if mode == "train":
            network.zero_grad()
            answer().backward()
        else:
            with torch.no_grad():
                answer()

    if arguments.what == "memory":
        print(peak_growth(step))
    else:
        started = time.process_time()
        step()
        print(time.process_time() - started)


if __name__ == "__main__":
    _measure()
