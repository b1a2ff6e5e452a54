#!/usr/bin/env bash
# Package a bundle as an application of MONAI Deploy. Needs scripts/setup.sh deploy.
#   scripts/package_deploy.sh ct_insight build/ct_insight     a bundle's name or folder, and where to (a new folder)
# Afterwards there is
#   context/                 what an image is built of: `docker build --file Dockerfile.map .` builds it (docs/pages/deploy.md)
#   context/Dockerfile       the packager's own, whose entrypoint ends with 0 whatever the application ended with
# and, where docker with buildx is at work, the packager's image too.
set -euo pipefail
bundle="$1"
mkdir -p "$(dirname "$2")"
out="$(cd "$(dirname "$2")" && pwd)/$(basename "$2")"
[ -e "$bundle" ] && bundle="$(cd "$bundle" && pwd)"
cd "$(dirname "$0")/.."
[ ! -e "$out" ] || { echo "'$out' exists; remove it or choose another folder" >&2; exit 1; }
python="$PWD/.venv-deploy/bin/python"
[ -x "$python" ] || { echo "there is no .venv-deploy: run scripts/setup.sh deploy" >&2; exit 1; }

stage="$out/stage"
mkdir -p "$out"
PYTHONPATH="$PWD" "$python" - "$bundle" "$stage" <<'PYTHON'
import sys
from pathlib import Path

from monai_mil.deploy import stage_application
from monai_mil.errors import MonaiMILError
from monai_mil.runs import find_bundle

try:
    stage_application(find_bundle(sys.argv[1]), Path(sys.argv[2]))
except MonaiMILError as error:
    sys.exit(str(error))
PYTHON
name="$(ls "$stage/models")"
version="$(sed -n 's/^  version: //p' "$stage/app.yaml")"

package() {
    "$(dirname "$python")/monai-deploy" package "$stage/app" --config "$stage/app.yaml" --models "$stage/models" \
        --docs "$stage/docs" --source "$stage/artifacts.json" --tag "monai-mil-$name:$version" --platform x86_64 \
        --uid 1001 --gid 1001 --timeout 3600 --build-cache "$out/cache" --no-cache
}
# First with a stand-in for docker, which keeps the context that the packager gives it; then, if there is one, by docker.
PATH="$PWD/scripts/deploy:$PATH" KEEP_CONTEXT="$out/context" package
cp "$stage/Dockerfile.map" "$out/context/Dockerfile.map"
rm -rf "$stage" "$out/cache"
echo "build context: $out/context"
