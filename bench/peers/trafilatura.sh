#!/usr/bin/env bash
# Makes .venv-trafilatura with the text extractor of that name from PyPI, once; prints its Python.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
venv="$root/.venv-trafilatura"
if [ ! -e "$venv/.done" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet trafilatura==2.3.1 lxml_html_clean tzdata >&2
  touch "$venv/.done"
fi
echo "$venv/bin/python"
