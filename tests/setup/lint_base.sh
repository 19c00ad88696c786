#!/bin/bash
# lint_base.sh SOURCE WORK: which commits scripts/tidy looks at. A scratch repository of four commits; the second brings
# a finding, the third and fourth are clean: whoever looks at the last commit alone does not see it.
set -eu
source=$1 work=$2
tidy=$source/.venv/bin/clang-tidy
[ -x "$tidy" ] || { echo "skipped: no clang-tidy in .venv"; exit 77; }
# What the system that runs this test may have set.
unset TIDY_MINUTES TIDY_BASE CI_MERGE_REQUEST_DIFF_BASE_SHA CI_COMMIT_BEFORE_SHA GITHUB_BASE_REF
unset GIT_PREVIOUS_SUCCESSFUL_COMMIT
rm -rf "$work"; mkdir -p "$work/origin"; cd "$work/origin"
git init -q -b main .; git config user.name t; git config user.email t@t
mkdir -p scripts src/room .venv/bin build
cp "$source/scripts/tidy" scripts/; cp "$source/.clang-tidy" .
printf '.venv\nbuild\n.cache\n' > .gitignore
save() { git add -A; git commit -qm "$1"; }
echo 'int first() { return 1; }' > src/room/first.cc; save "one"
printf '#include <string>\nvoid take(std::string text);\nvoid take(std::string text) { if (text.size() == 0) return; }\n' > src/room/second.cc; save "two, with a finding"
echo 'int third() { return 3; }' > src/room/third.cc; save "three"
echo 'int fourth() { return 4; }' > src/room/fourth.cc; save "four"

failures=0
look() {  # look FOLDER [--ci]: scripts/tidy in it, as configured; output in $said, exit code in $code
  mkdir -p "$1/.venv/bin" "$1/build" "$1/.cache"; ln -sf "$tidy" "$1/.venv/bin/clang-tidy"
  { echo '['; first=1; for file in "$1"/src/room/*.cc; do
      [ $first = 1 ] || echo ','; first=0
      echo "{\"directory\": \"$1/build\", \"file\": \"$file\", \"command\": \"c++ -std=c++20 -c $file\"}"
    done; echo ']'; } > "$1/build/compile_commands.json"
  rm -rf "$1/build/tidy"; code=0; said=$(cd "$1" && "$1/scripts/tidy" "${@:2}" 2>&1) || code=$?
}
expect() {  # expect WHAT CODE PATTERN
  if [ "$code" = "$2" ] && grep -qE "$3" <<< "$said"; then echo "ok: $1"; return; fi
  echo "FAILED: $1: exit $code, wanted $2 and '$3'; it said:"; sed 's/^/  /' <<< "$said"; failures=$((failures + 1))
}
git clone -q --depth 1 "file://$work/origin" "$work/shallow"; look "$work/shallow"
expect "a clone of depth 1 looks at everything and says so" 1 'no good commit is known'
expect "... and finds what an earlier commit brought" 1 'second\.cc.*error'
TIDY_MINUTES=0 look "$work/shallow"
expect "... within its time, and says what it left out" 0 '4 NOT looked at'
git clone -q "$work/origin" "$work/branch"; git -C "$work/branch" reset -q --hard HEAD~3
git -C "$work/branch" update-ref refs/remotes/origin/main HEAD; git -C "$work/branch" merge -q --ff-only "$(git rev-parse HEAD)"
look "$work/branch"; expect "a branch is compared with where it left main" 1 'second\.cc.*error'
git -C "$work/branch" rev-parse HEAD~1 > "$work/branch/.cache/tidy.good"
look "$work/branch"; expect "what passed here is the base" 0 'tidy: 1 files, 0 known to be clean, 0 with'
echo 0123456789012345678901234567890123456789 > "$work/branch/.cache/tidy.good"
look "$work/branch"; expect "a mark that this clone does not have does not count" 1 'second\.cc.*error'
git -C "$work/branch" rev-parse HEAD~1 > "$work/branch/.cache/tidy.good"; look "$work/branch"; look "$work/branch"
expect "what it found clean is the next base" 0 'tidy: 0 files'
TIDY_MINUTES=0 look "$work/shallow"; [ ! -e "$work/shallow/.cache/tidy.good" ] ||
  { echo "FAILED: a look that was cut short made its commit a good one"; failures=$((failures + 1)); }

# --ci: `push` has the four commits and main itself, as continuous integration checks it out after a push.
git clone -q "$work/origin" "$work/push"; oldest=$(git -C "$work/push" rev-parse HEAD~3)
look "$work/push" --ci
expect "without another base it is the last commit" 0 'tidy: 1 files, 0 known to be clean, 0 with'
CI_COMMIT_BEFORE_SHA=0000000000000000000000000000000000000000 look "$work/push" --ci
expect "... also where the system names a commit that is none" 0 'tidy: 1 files'
CI_COMMIT_BEFORE_SHA=$oldest look "$work/push" --ci
expect "all commits of a push are looked at" 1 'second\.cc.*error'
CI_COMMIT_BEFORE_SHA=$oldest TIDY_MINUTES=0 look "$work/push" --ci
expect "... within its time" 0 '3 NOT looked at'
named=$(sed -n 's/.*not looked at: //p' <<< "$said" | tr '\n' ' ')
[ "$named" = "src/room/fourth.cc src/room/third.cc src/room/second.cc " ] ||
  { echo "FAILED: the newest are not first among those left out: $named"; failures=$((failures + 1)); }
git -C "$work/push" update-ref refs/remotes/origin/main "$oldest"
look "$work/push" --ci; expect "commits ahead of main are all looked at" 1 'second\.cc.*error'
GITHUB_BASE_REF=main look "$work/push" --ci; expect "a pull request's target is a base" 1 'by GITHUB_BASE_REF'
look "$work/shallow" --ci; expect "a clone of depth 1 has nothing to compare with" 0 'tidy: not run'
exit $((failures > 0))
