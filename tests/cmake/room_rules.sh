#!/bin/bash
# room_rules.sh SOURCE WORK: scratch projects of two rooms, `low` and `high` (which links low). The good one
# builds; each other one breaks one rule and must be refused, with the message that says which.
set -u
source=$1 work=$2
rm -rf "$work"
failures=0

# project NAME: a good project in $work/NAME.
project() {
  local dir=$work/$1
  mkdir -p "$dir/src/low" "$dir/src/high"
  cat > "$dir/CMakeLists.txt" <<C
cmake_minimum_required(VERSION 3.22)
project(rules LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
set(FLYWHEEL_FIRST_INCLUDES \${CMAKE_BINARY_DIR}/first)
file(MAKE_DIRECTORY \${FLYWHEEL_FIRST_INCLUDES})
include($source/cmake/room.cmake)
add_subdirectory(src/low)
add_subdirectory(src/high)
C
  echo 'room(low)' > "$dir/src/low/CMakeLists.txt"
  echo 'room(high DEPS low)' > "$dir/src/high/CMakeLists.txt"
  printf '#pragma once\nint low();\n' > "$dir/src/low/low.h"
  printf '#include "low/low.h"\nint low() { return 1; }\n' > "$dir/src/low/low.cc"
  printf '#pragma once\nint high();\n' > "$dir/src/high/high.h"
  printf '#include "high/high.h"\n#include "low/low.h"\nint high() { return low(); }\n' > "$dir/src/high/high.cc"
}

build() {  # build NAME: configures and builds everything; output in $work/NAME.log
  { cmake -G Ninja -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DCMAKE_CXX_COMPILER_WORKS=ON \
      -S "$work/$1" -B "$work/$1/build" && ninja -C "$work/$1/build" all check_headers; } > "$work/$1.log" 2>&1
}

accepted() {
  build "$1" && echo "ok: $1 builds" && return
  echo "FAILED: $1 should build"; tail -20 "$work/$1.log"; failures=$((failures + 1))
}
refused() {  # refused NAME PATTERN
  if build "$1"; then
    echo "FAILED: $1 should be refused"
  elif ! tr -s ' \n' ' ' < "$work/$1.log" | grep -qE "$2"; then  # CMake breaks lines
    echo "FAILED: $1 was refused, but not with '$2':"; tail -20 "$work/$1.log"
  else
    echo "ok: $1 is refused"; return
  fi
  failures=$((failures + 1))
}

project good
accepted good

project upward_include
printf '#include "low/low.h"\n#include "high/high.h"\nint low() { return high(); }\n' > "$work/upward_include/src/low/low.cc"
refused upward_include 'high/high\.h: No such file'

project upward_link
echo 'room(low DEPS high)' > "$work/upward_link/src/low/CMakeLists.txt"
refused upward_link 'room low may not link high'

project undeclared_include
echo 'room(high)' > "$work/undeclared_include/src/high/CMakeLists.txt"
refused undeclared_include 'low/low\.h: No such file'

project link_after_room
printf 'room(low)\ntarget_link_libraries(flywheel_low PRIVATE flywheel_high)\n' > "$work/link_after_room/src/low/CMakeLists.txt"
printf '#include "low/low.h"\n#include "high/high.h"\nint low() { return high(); }\n' > "$work/link_after_room/src/low/low.cc"
refused link_after_room 'room low: flywheel_low links flywheel_high'

project link_of_a_test  # a test may not reach up either, and not from another folder's CMakeLists.txt
printf '#include "high/high.h"\nint main() { return high(); }\n' > "$work/link_of_a_test/src/low/speed_bench.cc"
printf 'room(high DEPS low)\ntarget_link_libraries(low_speed_bench PRIVATE flywheel_high)\n' > "$work/link_of_a_test/src/high/CMakeLists.txt"
refused link_of_a_test 'room low: low_speed_bench links flywheel_high'

project include_through_parent
printf '#include "low/low.h"\n#include "../high/high.h"\nint low() { return high(); }\n' > "$work/include_through_parent/src/low/low.cc"
refused include_through_parent 'room low: .*low\.cc has #include "\.\./high/high\.h"'

project include_through_own_root  # build/include/low/low is a link: .. leads to src
printf '#include "low/low.h"\n# include <low/../high/high.h>\nint low() { return high(); }\n' > "$work/include_through_own_root/src/low/low.cc"
refused include_through_own_root 'room low: .*low\.cc has # include <low/\.\./high/high\.h>'

project include_folder
printf 'room(low)\ntarget_include_directories(flywheel_low PRIVATE ..)\n' > "$work/include_folder/src/low/CMakeLists.txt"
refused include_folder 'room low: flywheel_low has the include folder .*/src; '

project include_root_of_another
printf 'room(low)\ntarget_include_directories(flywheel_low PRIVATE ${CMAKE_BINARY_DIR}/include/high)\n' > "$work/include_root_of_another/src/low/CMakeLists.txt"
refused include_root_of_another 'room low: flywheel_low has the include folder .*/include/high; '

project room_under_libs
echo 'room(high LIBS flywheel_low)' > "$work/room_under_libs/src/high/CMakeLists.txt"
refused room_under_libs 'names flywheel_low under LIBS'

project header_not_alone
printf '#pragma once\nstd::string name();\n' > "$work/header_not_alone/src/low/low.h"
printf '#include <string>\n#include "low/low.h"\nint low() { return 1; }\n' > "$work/header_not_alone/src/low/low.cc"
printf '#include "high/high.h"\nint high() { return 1; }\n' > "$work/header_not_alone/src/high/high.cc"
refused header_not_alone "low\.h.*'?string'?.*namespace"

exit $((failures > 0))
