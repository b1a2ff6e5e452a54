#!/usr/bin/env bash
# Run a packaged application as its container would, without a container: its own paths and environment, no network, a
# user that no passwd file knows, everything but the output read-only. Ends as the application ends.
#   scripts/run_map_sandbox.sh build/ct_insight/context INPUT OUTPUT      (context: as scripts/package_deploy.sh makes it)
# Needs bubblewrap (apt-get install bubblewrap) and, for the packages of the image, .venv-deploy.
set -euo pipefail
[ $# -eq 3 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
context="$(cd "$1" && pwd)"
input="$(cd "$2" && pwd)"
mkdir -p "$3"
output="$(cd "$3" && pwd)"
cd "$(dirname "$0")/.."
venv="$PWD/.venv-deploy"
command -v bwrap >/dev/null || { echo "there is no bubblewrap: apt-get install bubblewrap" >&2; exit 1; }
[ -x "$venv/bin/python" ] || { echo "there is no .venv-deploy: run scripts/setup.sh deploy" >&2; exit 1; }
base="$("$venv/bin/python" -c 'import sys; print(sys.base_prefix)')"

# The environment and the command are those of the image.
environment=()
while IFS='=' read -r name value; do
    environment+=(--setenv "$name" "$value")
done < <(sed -n '/^ENV /,/[^\\]$/p' "$context/Dockerfile.map" | sed 's/^ENV //; s/^ *//; s/ *\\$//')
mapfile -t entrypoint < <(sed -n 's/^ENTRYPOINT //p' "$context/Dockerfile.map" | tr -d '[]"' | tr ',' '\n' | sed 's/^ *//')

system=()
for place in /usr /bin /sbin /lib /lib64 /etc/ld.so.cache /etc/ssl /etc/localtime "$base" "$venv"; do
    [ ! -e "$place" ] || system+=(--ro-bind "$place" "$place")
done
exec bwrap --unshare-all --die-with-parent --new-session --uid 4711 --gid 4711 --clearenv \
    --proc /proc --dev /dev --tmpfs /tmp "${system[@]}" \
    --ro-bind "$context/app" /opt/holoscan/app --ro-bind "$context/models" /opt/holoscan/models \
    --ro-bind "$context/docs" /opt/holoscan/docs --ro-bind "$context/map" /etc/holoscan \
    --ro-bind "$context/app.config" /var/holoscan/app.yaml --ro-bind "$input" /var/holoscan/input \
    --bind "$output" /var/holoscan/output --remount-ro / --chdir /var/holoscan \
    "${environment[@]}" --unsetenv USER --setenv PATH "$venv/bin:/usr/bin:/bin" --setenv OMP_NUM_THREADS "${OMP_NUM_THREADS:-1}" \
    "${entrypoint[@]}"
