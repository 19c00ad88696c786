#!/bin/bash
# Makes .venv-llama at the project's root on demand: llama-cpp-python, built from source for this machine
# (about 4 minutes on 2 cores), the peer of bench/decode and bench/prefill. Prints the Python to run.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:-$root/.venv-llama}
version=0.3.36
if [ ! -e "$venv/ready-$version" ]; then
  {
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --upgrade pip
    CMAKE_ARGS="-DGGML_NATIVE=ON" nice -n 10 "$venv/bin/pip" install --quiet "llama-cpp-python==$version"
    touch "$venv/ready-$version"
  } >&2
fi
echo "$venv/bin/python"
