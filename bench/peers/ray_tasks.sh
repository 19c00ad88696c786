#!/bin/bash
# Ray's tasks per second, one at a time and many in flight; one JSON line. Makes .venv-ray when it is missing.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd); venv=$root/.venv-ray
if [ ! -x "$venv/bin/ray" ]; then
  python3 -m venv "$venv" >&2
  "$venv/bin/pip" install -q 'ray[default]==2.60.*' >&2
fi
export RAY_USAGE_STATS_ENABLED=0
# A network of its own: Ray listens on every interface that it finds.
isolate=()
if unshare -n true 2>/dev/null; then isolate=(unshare -n); fi
"${isolate[@]}" bash -c 'ip link set lo up 2>/dev/null || true; exec "$0" -' "$venv/bin/python" <<'P' | tail -1
import json, time, ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="error", _node_ip_address="127.0.0.1")
@ray.remote
def nothing():
    return b""
ray.get([nothing.remote() for _ in range(500)])
start = time.perf_counter()
for _ in range(1000):
    ray.get(nothing.remote())
sync = 1000 / (time.perf_counter() - start)
start = time.perf_counter()
ray.get([nothing.remote() for _ in range(10000)])
print(json.dumps({"sync_per_s": sync, "async_per_s": 10000 / (time.perf_counter() - start)}))
P
