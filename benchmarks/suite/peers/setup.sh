#!/usr/bin/env bash
# Make one virtual environment per peer in out/peers/<peer> of the checkout, with the versions in pins/<peer>.txt.
# Arguments: peers, default all. PYTHON names the interpreter: 3.11 or 3.12, as aepsych, skopt and trieste need numpy 1.
# About 4 GB and five minutes. Where pip would take a CUDA build of torch:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu benchmarks/suite/peers/setup.sh
set -euo pipefail

peers=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$peers/../../.." && pwd)
[ $# -gt 0 ] || set -- aepsych botorch learnernd skopt trieste
for peer in "$@"; do
    pins="$peers/pins/$peer.txt"
    [ -f "$pins" ] || { echo "setup.sh: peers are the files in $peers/pins, got $peer. Name one of them" >&2; exit 1; }
    environment="$root/out/peers/$peer"
    # Made anew where the pins have changed since: pip would leave what is no longer pinned.
    if cmp -s "$pins" "$environment/pins.txt"; then
        echo "$peer: is there"
        continue
    fi
    rm -rf "$environment"
    "$root/scripts/find-python" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -r "$pins"
    "$environment/bin/python" -m pip check
    cp "$pins" "$environment/pins.txt"
done
