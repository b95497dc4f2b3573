#!/usr/bin/env bash
# Set up what the kit needs: a virtual environment, its packages, a Vulkan driver that SAPIEN can draw with.
# A no-op when all three are there: two stamps in the environment hold a hash of everything they depend on.
#   PYTHON=/path/to/python3.11   TORCH_INDEX=URL (a further package index for torch, such as the one with CPU builds)   VENV=.venv
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}

die() { echo "setup: $1" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "the kit runs on Linux, this is $(uname -s) -> use a Linux machine, WSL 2 or a container"

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

if [ -z "${PYTHON:-}" ]; then
    for candidate in python3.11 python3 python3.12 python3.13; do
        if fits "$candidate"; then PYTHON=$candidate; break; fi
    done
fi
[ -n "${PYTHON:-}" ] || die "no Python 3.11 to 3.13 found -> install one (Debian 12: apt-get install python3 python3-venv) or run make setup PYTHON=/path/to/python3.11"
fits "$PYTHON" || die "$PYTHON is not Python 3.11 to 3.13 -> run make setup PYTHON=/path/to/python3.11"

key=$({ cat pyproject.toml constraints.txt scripts/setup.sh; "$PYTHON" -VV; pwd; } | sha256sum | cut -d' ' -f1)
driver_key=$({ echo "$key"; cat scripts/vulkan_driver.py; uname -a; } | sha256sum | cut -d' ' -f1)
packages_stamp=$VENV/.refinevla-packages
driver_stamp=$VENV/.refinevla-driver

if [ "$(cat "$packages_stamp" 2>/dev/null)" != "$key" ]; then
    echo "Setting up the ReFineVLA kit in $VENV with $("$PYTHON" -V):"
    echo "  - a virtual environment, so that nothing of your system changes;"
    echo "  - torch 2.13.0, to train and run the policies (about 0.2 GB to download as the CPU build; the CUDA build that some"
    echo "    platforms get by default is several GB: set TORCH_INDEX to an index of CPU builds if you have no GPU);"
    echo "  - about 200 further packages: transformers, ManiSkill 3 and SAPIEN (the simulator), JupyterLab and papermill (the notebooks),"
    echo "    captum, pyarrow, PyAV, matplotlib, the Gemini clients, the test tools; versions as in constraints.txt."
    echo "  With the CPU build this takes about 3.6 GB of disk, with a CUDA build 7.3 GB."
    # Made anew as well when the checkout has moved: the environment's scripts name the folder they were made in.
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || ! head -n1 "$VENV/bin/pip" | grep -qF "$(cd "$VENV" && pwd -P)/"; then
        if ! "$PYTHON" -c 'import ensurepip' 2>/dev/null; then
            package=$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
            if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
                echo "  - $package with apt, because this Python cannot make virtual environments without it;"
                { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package"; } >/dev/null 2>&1 \
                    || die "apt could not install $package -> install it by hand"
            else
                die "this Python cannot make virtual environments -> install $package (as root: apt-get install $package) or give another with PYTHON="
            fi
        fi
        rm -rf "$VENV"
        "$PYTHON" -m venv "$VENV" || die "the virtual environment $VENV could not be made -> see the message above"
    fi
    fits "$VENV/bin/python" || die "$VENV holds another Python -> remove $VENV and run this again"
    install() { "$VENV/bin/python" -m pip install --disable-pip-version-check -qq -c constraints.txt "$@"; }
    # Debian 12's pip takes many minutes to resolve what a current one resolves in one.
    install --upgrade 'pip>=25' || die "pip could not renew itself -> see its message above"
    echo "Installing torch (1 of 2) ..."
    # First and alone, so that the further index is asked for nothing else.
    install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0 || die "pip could not install torch 2.13.0 -> see pip's message above"
    echo "Installing the kit and its packages (2 of 2) ..."
    install -e '.[maniskill,gemini,dev,docs]' || die "pip could not install the packages -> see pip's message above"
    # For Python 3.13 there is no mplib as old as mani_skill asks for; the kit does not plan motions (see pyproject.toml).
    "$VENV/bin/python" -m pip show -q mani_skill 2>/dev/null || install --no-deps mani_skill || die "pip could not install mani_skill -> see pip's message above"
    wrong=$("$VENV/bin/python" -m pip check | grep -v -e '^No broken requirements' -e 'requires mplib' || true)
    [ -z "$wrong" ] || die "the installed packages contradict each other ($wrong) -> remove $VENV and run this again"
    echo "$key" > "$packages_stamp"
fi

if [ "$(cat "$driver_stamp" 2>/dev/null)" != "$driver_key" ]; then
    "$VENV/bin/python" scripts/vulkan_driver.py || die "no Vulkan driver; the rest is installed -> mend it as said above and run this again"
    echo "$driver_key" > "$driver_stamp"
    echo "Ready. $VENV/bin/refinevla doctor says what is here, one line a requirement."
fi
