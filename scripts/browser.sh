#!/usr/bin/env bash
# A Chromium for the tests of the widgets: a no-op where there is one; on Debian, as root, it is installed with apt. Without it those tests are skipped.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then echo "Browser: $name; nothing to install"; exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Browser: no Chromium here, and installing one needs root and apt -> install chromium by hand (as root: apt-get install chromium)" >&2
    exit 1
fi
echo "Browser: installing chromium with apt (0.5 GB), to test the notebooks' widgets as a person uses them"
{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 \
    || { echo "Browser: apt could not install chromium -> install it by hand; without it the tests that need it are skipped" >&2; exit 1; }
