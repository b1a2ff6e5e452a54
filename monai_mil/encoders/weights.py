"""Weights: found, downloaded, read safely, and told apart by a digest."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_mil.encoders.card import EncoderCard
from monai_mil.errors import EncoderError

_DIGITS = 16
_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict")
_PREFIXES = ("module.", "backbone.", "_orig_mod.", "encoder.")


def weight_file(card: EncoderCard, weights: str | Path | None) -> Path:
    """The given file, or the card's: that of an installed package, or downloaded once into Hugging Face's cache.

    Raises:
        EncoderError: the file is missing or cannot be downloaded, the package is not installed; says how to get it.
    """
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise EncoderError(f"encoder '{card.name}': weight file '{path}' does not exist; check the path")
        return path
    if card.package is not None:
        return package_file(card, card.package)
    if card.url is not None:
        return _download_url(card, card.url)
    if card.repo is None:
        raise EncoderError(f"encoder '{card.name}': no place to download weights from is known; pass weights=FILE")
    return _download(card, card.repo)


def _download(card: EncoderCard, repo: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise EncoderError(
            f"encoder '{card.name}': downloading needs huggingface-hub; install it with "
            "pip install 'monai-mil[encoders]', or pass weights=FILE"
        ) from error
    reason: Exception | None = None
    for name in card.files:
        try:
            return Path(hf_hub_download(repo, name))
        except LocalEntryNotFoundError as error:
            reason = error
            break
        except EntryNotFoundError as error:
            reason = error
        except Exception as error:  # the hub raises errors of several HTTP libraries
            reason = error
            break
    access = "request access on the repository's page, log in with 'hf auth login', and try again; " * card.gated
    raise EncoderError(
        f"encoder '{card.name}': its weights cannot be downloaded from the Hugging Face repository '{repo}' "
        f"({type(reason).__name__}); {access}without a network, fetch {' or '.join(card.files)} elsewhere "
        "and pass weights=FILE"
    ) from reason


def package_file(card: EncoderCard, package: str) -> Path:
    """The weights within an installed package, of which nothing is imported.

    Raises:
        EncoderError: the package is not installed, or has no such file; says what to install.
    """
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in card.files:
            if (path := Path(folder, name)).is_file():
                return path
    reason = "is not installed" if spec is None else f"lacks {' and '.join(card.files)}"
    raise EncoderError(
        f"encoder '{card.name}': its weights come in the package {package.replace('_', '-')}, which {reason}; "
        "install it with pip install 'monai-mil[imagenet]', or pass weights=FILE"
    )


def url_file(url: str) -> Path:
    """Where torch's hub keeps a downloaded file."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def _download_url(card: EncoderCard, url: str) -> Path:
    path = url_file(url)
    if path.is_file():
        return path
    expected = path.stem.rsplit("-", 1)[-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected, progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: the content is not what the name promises
        raise EncoderError(
            f"encoder '{card.name}': its weights cannot be downloaded from {url} ({error}); "
            f"without a network, fetch {path.name} elsewhere and pass weights=FILE"
        ) from error
    return path


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a pickle that may hold plain tensors only.

    Wrappers that training scripts put around it (``state_dict``, ``module.``) are taken off.

    Raises:
        EncoderError: the file is damaged, or unpickling it would run code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"encoder '{name}': weight file '{path}' is damaged or holds more than tensors, so loading it could run "
            "code; save its state dict as safetensors"
        ) from error
    except Exception as error:  # safetensors and torch raise errors of their own for damaged files
        raise EncoderError(
            f"encoder '{name}': weight file '{path}' cannot be read ({error}); fetch it again"
        ) from error
    return _unwrap(content, path, name)


def _unwrap(content: object, path: Path, name: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and (inner := next((w for w in _WRAPPERS if w in content), None)):
        content = content[inner]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise EncoderError(f"encoder '{name}': weight file '{path}' holds no state dict; save model.state_dict() in it")
    weights = dict(content)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def fill(model: nn.Module, weights: dict[str, Tensor], path: Path, name: str) -> None:
    """Put the weights into the model, every one of them.

    Raises:
        EncoderError: names or shapes differ from the architecture's.
    """
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise EncoderError(
            f"encoder '{name}': weight file '{path}' is not of this architecture ({' '.join(lines)[:300]}); "
            "choose the encoder the file belongs to"
        ) from error


def digest_weights(model: nn.Module, facts: str) -> str:
    """Digest of every parameter and buffer in name order, and of how tiles are prepared."""
    digest = hashlib.sha256(facts.encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:_DIGITS]


def digest_file(path: Path, facts: str) -> str:
    """Digest of a whole file, and of how tiles are prepared."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_text(f"{content} {facts}")


def digest_text(text: str) -> str:
    """Digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
