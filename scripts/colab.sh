#!/usr/bin/env bash
# Set up the kit in a Python that is there already and has a notebook open, such as Colab's; the first cell of notebook 0 runs it.
#   bash scripts/colab.sh /path/to/python
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
"$python" -m pip install -q uv
uv() { "$python" -m uv pip "$@" --quiet --python "$python"; }

# What serves the open notebook stays as it is: as an override, a name alone is met by any version, a false marker by nothing.
kept=$(mktemp)
trap 'rm -f "$kept"' EXIT
printf '%s\n' ipykernel ipython ipywidgets jupyter-client nbclient nbformat tornado traitlets "jupyterlab; python_version < '3'" \
    'mani_skill>=3.0.1,<3.1' "mplib; python_version < '3.13'" > "$kept"
install() { uv install --overrides "$kept" --torch-backend "$1" '.[maniskill]'; }

echo "Installing the kit and its packages: some minutes"
install auto || install cpu  # the GPU's driver may be older than every CUDA build of this torch
uv uninstall torchvision torchaudio torchao  # made for the torch that was here; the kit needs none of them
"$python" scripts/vulkan_driver.py
