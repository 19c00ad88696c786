#!/bin/bash
# make_setup.sh SOURCE WORK: `make setup` does its work when any part of what it makes is gone, and only then. In
# place of scripts/setup, which installs packages, stands one that says that it was called and makes its files.
set -eu
source=$1 work=$2
rm -rf "$work"; mkdir -p "$work/scripts"; cd "$work"
cp "$source/Makefile" .; cp "$source/scripts/packages.txt" scripts/
cat > scripts/setup <<'S'
#!/bin/bash
echo called
site=.venv/lib/python3.11/site-packages
mkdir -p .venv/bin $site/pyarrow $site/torch/lib .cache
touch .venv/bin/pip $site/pyarrow/libarrow.so $site/torch/lib/libtorch_cpu.so; chmod +x .venv/bin/pip
cat scripts/packages.txt scripts/setup > .cache/setup.done
S
chmod +x scripts/setup
failures=0
expect() {  # expect WHAT WANTED: `make setup` prints WANTED
  local said; said=$(env -u MAKEFLAGS -u MAKELEVEL make -s setup)
  if [ "$said" = "$2" ]; then echo "ok: $1"; else echo "FAILED: $1: '$said', not '$2'"; failures=$((failures + 1)); fi
}
expect "from a clone" called
expect "nothing to do" ""
rm -r .venv; expect "without .venv, though it was done" called
rm .venv/lib/python3.11/site-packages/pyarrow/libarrow.so; expect "with a .venv that lost a part" called
rm -r .venv/lib/python3.11/site-packages/torch; expect "without libtorch" called
rm -r .cache; expect "without its mark" called
echo '# one more' >> scripts/packages.txt; expect "with another list of packages" called
expect "nothing to do again" ""
exit $((failures > 0))
