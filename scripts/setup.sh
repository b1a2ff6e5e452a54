#!/usr/bin/env bash
# Make .venv and install monai-mil with the tested versions. Re-running is cheap: nothing is done while nothing changed.
#   scripts/setup.sh            what the demo and the bundles need
#   scripts/setup.sh dev        and what the tests, linters and benchmarks need
#   scripts/setup.sh label      .venv-label: MONAI Label, whose own pins fit no other environment (Python 3.11)
#   scripts/setup.sh deploy     .venv-deploy: MONAI Deploy's SDK, which every `import monai` beside it would import
#   PYTHON=python3.12 scripts/setup.sh
#   CUDA=13 scripts/setup.sh        cuCIM for CUDA 12 or 13; default: what the driver says, else 12
set -euo pipefail
cd "$(dirname "$0")/.."

extras="${1:-}"
python="${PYTHON:-python3}"
venv=.venv
driver="$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p')" || driver=""
cuda="${CUDA:-${driver:-12}}"
[ "$cuda" -ge 13 ] && cucim=cucim13 || cucim=cucim12

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "monai-mil needs Python 3.11 to 3.13; set PYTHON to one of them (found: $("$python" --version))" >&2
    exit 1
}
if [ "$extras" = label ]; then
    venv=.venv-label
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
        echo "MONAI Label 0.8.5 needs Python 3.11; set PYTHON to it (found: $("$python" --version))" >&2
        exit 1
    }
fi
if [ "$extras" = deploy ]; then venv=.venv-deploy; fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

wanted="$(cat pyproject.toml constraints.txt scripts/setup.sh monai_mil/{label,deploy}/requirements.txt | sha256sum | cut -d' ' -f1) $cucim"
stamp="$venv/installed-${extras:-core}"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
if [ "$extras" = deploy ]; then
    pip --constraint constraints.txt torch
    pip --requirement monai_mil/deploy/requirements.txt pytest pytest-timeout hypothesis
    # Without what it requires: its cuCIM would bring a second CuPy into the same folder, or gigabytes of CUDA libraries.
    pip --no-deps --editable .
    echo "$wanted" >"$stamp"
    exit 0
fi

if [ "$extras" = label ]; then
    pip --constraint constraints.txt torch
    pip --requirement monai_mil/label/requirements.txt pytest pytest-timeout pytest-cov hypothesis "pytest-xdist[psutil]"
    # What these declare contradicts what they run with: pydicom-seg and numpymaxflow shut numpy 2 out, torchvision's
    # matched build imports beside a CUDA build of torch only. monai_mil/label/requirements.txt says why each is so.
    pip --no-deps monailabel==0.8.5 torchvision==0.15.2 pydicom-seg==0.4.1 itk-core==5.4.7 itk-io==5.4.7 dcmqi==1.5.7 \
        "$(grep '^cucim-cu12==' constraints.txt)"
    pip --no-deps --editable .
    "$venv/bin/python" -c 'import monailabel.app' >/dev/null
    echo "$wanted" >"$stamp"
    exit 0
fi

# torch first and by its exact version: a range would bring the newest build and gigabytes of CUDA libraries with it.
"$venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt torch
"$venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$cucim${extras:+,$extras}]"

if [ "$extras" = dev ]; then
    # The encoder tests need timm, and timm needs torchvision, whose matched build imports beside a CUDA build of
    # torch only. This older one imports beside the CPU build, and the tests use nothing of it that differs.
    if "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
        "$venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[encoders]"
    else
        "$venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt requests
        "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps timm==1.0.31 torchvision==0.15.2
    fi
fi
echo "$wanted" >"$stamp"
