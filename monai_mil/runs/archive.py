"""A bundle as one archive that ``monai.bundle download`` takes."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from monai_mil.files import replacing
from monai_mil.runs.bundles import Bundle, shipped_files

_TIME = (1980, 1, 1, 0, 0, 0)


def pack_bundle(bundle: Bundle, folder: Path) -> tuple[Path, str]:
    """Write ``folder/<name>_v<version>.zip``, which holds the bundle's folder; the same files give the same bytes.

    Returns:
        The archive and its SHA-256.

    Raises:
        OutputError: it cannot be written.

    Examples:
        >>> from monai_mil.runs import find_bundle, pack_bundle
        >>> archive, digest = pack_bundle(find_bundle("mil_baselines"), folder)
        >>> archive.name, len(digest)
        ('mil_baselines_v0.1.0.zip', 64)
    """
    archive = folder / f"{bundle.name}_v{bundle.metadata['version']}.zip"
    with replacing(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
        for path in shipped_files(bundle):
            name = f"{bundle.name}/{path.relative_to(bundle.root).as_posix()}"
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            file.writestr(info, path.read_bytes())
    return archive, hashlib.sha256(archive.read_bytes()).hexdigest()
