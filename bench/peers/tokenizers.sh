#!/bin/bash
# Makes .venv-tokenizers at the project's root on demand (with the published vocabularies in .cache/tokenizers),
# the peers of bench/tokenize. Prints the Python to run.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
"$root/tests/tokenizers/run" --only-setup >&2
echo "$root/.venv-tokenizers/bin/python"
