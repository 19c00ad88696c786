# room(NAME [DEPS room...] [LIBS target...] [MODULE_LIBS target...] [SLOW_SHARDS n])
#
# Makes the target of one room from the folder's files:
#   *.cc, *.cu             the static library flywheel_NAME
#   *.emulated.cc           a .cu file, compiled for the emulated device (kernels/device_code.h)
#   *.avx2.cc, *.avx512.cc  the same, with that instruction set's flags (chosen at run time, see base/cpu.h)
#   *_test.cc              NAME_test, label "fast";  *_slow_test.cc  NAME_slow_test, label "slow". With SLOW_SHARDS
#                          ctest has n tests of this program, NAME_slow_test_0 and further, which may run at the same
#                          time: for a room whose slow tests last longer than all others
#   *_module.cc            flywheel_NAME_<file>.so in build/modules, loaded with dlopen: for a library that must not be
#                          linked into the program. It sees no room, only MODULE_LIBS.
#   *_torch.cc             together flywheel_NAME_torch.so in build/modules, the same for libtorch, whose start takes a
#                          quarter of a second. It sees the room and calls the program's own functions.
#   *_bench.cc             one program each, NAME_<file>
#   *.h                    NAME_headers: each compiled alone (target check_headers builds all)
#
# A room may link only rooms that were added before it: the order in src/CMakeLists.txt is the
# architecture. It sees only the headers of the rooms that it links, because each room has an include
# root of its own (build/include/NAME holds one link, NAME -> src/NAME). What would go round that is refused: an
# include through "..", and, looked at when everything has been configured, a room or an include root that
# target_link_libraries() or target_include_directories() gave to one of the room's targets.
define_property(GLOBAL PROPERTY FLYWHEEL_ROOMS BRIEF_DOCS "rooms so far" FULL_DOCS "rooms so far")
add_custom_target(check_headers)
add_custom_target(fast_tests)  # the programs of the tests with the label "fast"

set(FLYWHEEL_AVX2_FLAGS -mavx2 -mfma -mf16c -mbmi2)
set(FLYWHEEL_AVX512_FLAGS -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi
                          -mavx512vnni -mavx512bf16 -mprefer-vector-width=512)

function(flywheel_isa_flags)
  foreach(file ${ARGN})
    if(file MATCHES "\\.avx2\\.cc$")
      set(flags ${FLYWHEEL_AVX2_FLAGS})
    elseif(file MATCHES "\\.avx512\\.cc$")
      set(flags ${FLYWHEEL_AVX512_FLAGS})
    else()
      continue()
    endif()
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${flags}" SKIP_PRECOMPILE_HEADERS ON)
  endforeach()
endfunction()

# One precompiled header for all targets of a kind (`kind`: those that are compiled alike), made with the first of them.
function(flywheel_precompile target kind)
  get_property(first GLOBAL PROPERTY FLYWHEEL_PRECOMPILED_${kind})
  if(first)
    target_precompile_headers(${target} REUSE_FROM ${first})
  else()
    set_property(GLOBAL PROPERTY FLYWHEEL_PRECOMPILED_${kind} ${target})
    target_precompile_headers(${target} PRIVATE ${ARGN})
  endif()
endfunction()

# A program of GoogleTest: exit 77, "skipped" to ctest, when every one of its tests was. SHARDS n: n tests of ctest,
# TARGET_0 and further, with every n-th test of the program each; they may run at the same time.
function(flywheel_test target label)
  cmake_parse_arguments(TEST "" "SHARDS" "" ${ARGN})
  if(NOT TARGET flywheel_test_main)
    add_library(flywheel_test_main STATIC ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/test_main.cc)
    target_link_libraries(flywheel_test_main PRIVATE GTest::gmock)
    add_library(flywheel_test_watch OBJECT ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/test_watch.cc)
    target_link_libraries(flywheel_test_watch PUBLIC flywheel_base PRIVATE GTest::gtest)
  endif()
  target_link_libraries(${target} PRIVATE flywheel_test_main flywheel_test_watch GTest::gtest GTest::gmock)
  # A fifth less to compile; what a test measures is in the rooms.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
  # Only the files that ask get the checkout's place: without it, precompiled headers and objects are the same
  # in every checkout, and ccache shares them.
  get_target_property(sources ${target} SOURCES)
  foreach(file ${sources})
    file(STRINGS ${file} asks REGEX "FLYWHEEL_(SOURCE|ROOM)_DIR" LIMIT_COUNT 1)
    if(asks)
      set_property(SOURCE ${file} APPEND PROPERTY COMPILE_DEFINITIONS FLYWHEEL_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                                                  FLYWHEEL_ROOM_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
    endif()
  endforeach()
  set(tests ${target})
  if(TEST_SHARDS GREATER 1)
    math(EXPR last "${TEST_SHARDS} - 1")
    set(tests)
    foreach(shard RANGE ${last})
      list(APPEND tests ${target}_${shard})
    endforeach()
  endif()
  set(shard 0)
  foreach(test ${tests})
    add_test(NAME ${test} COMMAND ${target} --gtest_brief=1 WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
    set_tests_properties(${test} PROPERTIES LABELS ${label} TIMEOUT 600 SKIP_RETURN_CODE 77)
    if(label STREQUAL "slow")
      # The long ones begin first: none is left to run alone.
      set_tests_properties(${test} PROPERTIES COST 100 TIMEOUT 2400)
    endif()
    if(TEST_SHARDS GREATER 1)
      set_tests_properties(${test} PROPERTIES
                           ENVIRONMENT "GTEST_TOTAL_SHARDS=${TEST_SHARDS};GTEST_SHARD_INDEX=${shard}")
      math(EXPR shard "${shard} + 1")
    endif()
  endforeach()
  if(label STREQUAL "fast")
    add_dependencies(fast_tests ${target})
  endif()
endfunction()

# Refuses files that include through "..", which leads past the include roots.
function(flywheel_refuse_upward_includes room)
  foreach(file ${ARGN})
    file(STRINGS ${file} upward REGEX "^[ \t]*#[ \t]*include[ \t]*[<\"]([^>\"]*/)?\\.\\./" LIMIT_COUNT 1)
    if(upward)
      message(FATAL_ERROR "room ${room}: ${file} has ${upward}: headers are included as \"room/name.h\"; "
                          "see docs/design.md")
    endif()
  endforeach()
endfunction()

# At the end of the configuration: the targets of `room` link no rooms but itself and `deps` (a list with commas), and
# have no include root of the project's but those.
function(flywheel_check_room room deps targets)
  string(REPLACE "," ";" deps "${deps}")
  string(REPLACE "," ";" targets "${targets}")
  get_property(rooms GLOBAL PROPERTY FLYWHEEL_ROOMS)
  foreach(target ${targets})
    foreach(property LINK_LIBRARIES INTERFACE_LINK_LIBRARIES LINK_OPTIONS INTERFACE_LINK_OPTIONS)
      get_target_property(links ${target} ${property})
      foreach(other ${rooms})
        if("${links}" MATCHES "flywheel_${other}([^a-z_]|$)" AND NOT other IN_LIST deps AND NOT other STREQUAL room)
          message(FATAL_ERROR "room ${room}: ${target} links flywheel_${other}, which is not among its DEPS (${deps}); "
                              "see docs/design.md")
        endif()
      endforeach()
    endforeach()
    foreach(property INCLUDE_DIRECTORIES INTERFACE_INCLUDE_DIRECTORIES)
      get_target_property(folders ${target} ${property})
      foreach(folder ${folders})
        get_filename_component(folder "${folder}" ABSOLUTE)
        get_filename_component(name "${folder}" NAME)
        set(foreign FALSE)
        if(folder MATCHES "^${CMAKE_SOURCE_DIR}(/src(/.*)?)?$")
          set(foreign TRUE)
        elseif(folder STREQUAL "${CMAKE_BINARY_DIR}/include/${name}" AND name IN_LIST rooms)
          if(NOT name IN_LIST deps AND NOT name STREQUAL room)
            set(foreign TRUE)
          endif()
        endif()
        if(foreign)
          message(FATAL_ERROR "room ${room}: ${target} has the include folder ${folder}; other rooms are seen through "
                              "DEPS alone, see docs/design.md")
        endif()
      endforeach()
    endforeach()
  endforeach()
endfunction()

# A shared library in build/modules, for runtime/modules.h to load; what it does not name stays its own.
function(flywheel_add_module target)
  add_library(${target} MODULE ${ARGN})
  set_target_properties(${target} PROPERTIES PREFIX "" CXX_VISIBILITY_PRESET hidden
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/modules)
endfunction()

# The module of a room's *_torch.cc. What it calls of the rooms is its program's: nothing of it is linked here, and
# every program that links the room is told to keep those functions and to show them to the module.
function(flywheel_torch_module name)
  set(target flywheel_${name}_torch)
  set(room flywheel_${name})
  flywheel_add_module(${target} ${ARGN})
  target_include_directories(${target} PRIVATE $<TARGET_PROPERTY:${room},INCLUDE_DIRECTORIES>)
  target_compile_definitions(${target} PRIVATE $<TARGET_PROPERTY:${room},COMPILE_DEFINITIONS>)
  target_link_libraries(${target} PRIVATE spdlog::spdlog torch_deps)
  target_precompile_headers(${target} PRIVATE <torch/torch.h>)
  set(kept ${CMAKE_BINARY_DIR}/modules/${target}.kept)
  add_custom_command(TARGET ${target} POST_BUILD BYPRODUCTS ${kept} VERBATIM
                     COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DMODULE=$<TARGET_FILE:${target}> -DOUT=${kept}
                             -P ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/kept_symbols.cmake)
  target_link_options(${room} INTERFACE LINKER:@${kept})
  set_property(TARGET ${room} APPEND PROPERTY INTERFACE_LINK_DEPENDS ${kept})
  add_dependencies(${room} ${target})
endfunction()

# A test program of a room, in so many shards.
function(flywheel_room_test test label shards room)
  add_executable(${test} ${ARGN})
  target_link_libraries(${test} PRIVATE flywheel_${room})
  flywheel_precompile(${test} TEST <gtest/gtest.h> <gmock/gmock.h> <string> <vector>)
  flywheel_test(${test} ${label} SHARDS ${shards})
endfunction()

function(room name)
  cmake_parse_arguments(ROOM "" "SLOW_SHARDS" "DEPS;LIBS;MODULE_LIBS" ${ARGN})
  if(NOT ROOM_SLOW_SHARDS)
    set(ROOM_SLOW_SHARDS 1)
  endif()
  get_property(rooms GLOBAL PROPERTY FLYWHEEL_ROOMS)
  foreach(dep ${ROOM_DEPS})
    if(NOT dep IN_LIST rooms)
      message(FATAL_ERROR "room ${name} may not link ${dep}: only rooms above it in src/CMakeLists.txt "
                          "(${rooms}); see docs/design.md")
    endif()
  endforeach()
  foreach(lib ${ROOM_LIBS})
    if(lib MATCHES "^flywheel_")
      message(FATAL_ERROR "room ${name} names ${lib} under LIBS; rooms are named under DEPS")
    endif()
  endforeach()
  set_property(GLOBAL APPEND PROPERTY FLYWHEEL_ROOMS ${name})

  set(dir ${CMAKE_CURRENT_SOURCE_DIR})
  file(GLOB sources CONFIGURE_DEPENDS ${dir}/*.cc)
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${dir}/*.cu)
  file(GLOB headers CONFIGURE_DEPENDS ${dir}/*.h)
  file(GLOB slow_tests CONFIGURE_DEPENDS ${dir}/*_slow_test.cc)
  file(GLOB tests CONFIGURE_DEPENDS ${dir}/*_test.cc)
  file(GLOB benches CONFIGURE_DEPENDS ${dir}/*_bench.cc)
  file(GLOB modules CONFIGURE_DEPENDS ${dir}/*_module.cc)
  file(GLOB torch_sources CONFIGURE_DEPENDS ${dir}/*_torch.cc)
  list(REMOVE_ITEM sources ${tests} ${benches} ${modules} ${torch_sources})
  if(slow_tests)
    list(REMOVE_ITEM tests ${slow_tests})
  endif()
  if(FLYWHEEL_HAS_CUDA)
    list(APPEND sources ${cuda_sources})
  endif()
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(FILTER sources EXCLUDE REGEX "\\.avx(2|512)\\.cc$")
  endif()
  flywheel_isa_flags(${sources})
  file(GLOB private_sources CONFIGURE_DEPENDS ${dir}/*/*.cc ${dir}/*/*.h)  # programs beside the room
  flywheel_refuse_upward_includes(${name} ${sources} ${cuda_sources} ${headers} ${tests} ${slow_tests} ${benches}
                                  ${modules} ${torch_sources} ${private_sources})

  set(target flywheel_${name})
  set(include_root ${CMAKE_BINARY_DIR}/include/${name})
  file(MAKE_DIRECTORY ${include_root})
  file(CREATE_LINK ${dir} ${include_root}/${name} SYMBOLIC)
  if(sources)
    add_library(${target} STATIC ${sources})
    set(scope PUBLIC)
    set(pch algorithm array atomic chrono cstdint cstring functional map memory mutex optional span string
            string_view thread unordered_map utility vector)
    list(TRANSFORM pch REPLACE "^(.+)$" "$<$<COMPILE_LANGUAGE:CXX>:<\\1$<ANGLE-R>>" OUTPUT_VARIABLE guarded)
    flywheel_precompile(${target} ROOM ${guarded})
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(${target} ${scope} ${include_root})
  target_include_directories(${target} BEFORE ${scope} ${FLYWHEEL_FIRST_INCLUDES})
  list(TRANSFORM ROOM_DEPS PREPEND flywheel_ OUTPUT_VARIABLE dep_targets)
  target_link_libraries(${target} ${scope} ${dep_targets} ${ROOM_LIBS})
  set(targets ${target})

  foreach(module ${modules})
    get_filename_component(module_name ${module} NAME_WE)
    set(module_target flywheel_${name}_${module_name})
    flywheel_add_module(${module_target} ${module})
    target_include_directories(${module_target} PRIVATE ${include_root})
    target_link_libraries(${module_target} PRIVATE ${ROOM_MODULE_LIBS})
    add_dependencies(${target} ${module_target})
    list(APPEND targets ${module_target})
  endforeach()

  if(torch_sources)
    flywheel_torch_module(${name} ${torch_sources})
    list(APPEND targets flywheel_${name}_torch)
    set(headers_torch torch_deps)
  endif()

  if(tests)
    flywheel_room_test(${name}_test fast 1 ${name} ${tests})
    list(APPEND targets ${name}_test)
  endif()
  if(slow_tests)
    flywheel_room_test(${name}_slow_test slow ${ROOM_SLOW_SHARDS} ${name} ${slow_tests})
    list(APPEND targets ${name}_slow_test)
  endif()
  foreach(bench ${benches})
    get_filename_component(bench_name ${bench} NAME_WE)
    add_executable(${name}_${bench_name} ${bench})
    target_link_libraries(${name}_${bench_name} PRIVATE ${target})
    list(APPEND targets ${name}_${bench_name})
  endforeach()

  # Each header alone: a generated source per header, syntax only.
  set(alone)
  foreach(header ${headers})
    get_filename_component(header_name ${header} NAME)
    set(file ${CMAKE_BINARY_DIR}/headers/${name}/${header_name}.cc)
    file(GENERATE OUTPUT ${file} CONTENT "#include \"${name}/${header_name}\"\n#include \"${name}/${header_name}\"\n")
    list(APPEND alone ${file})
  endforeach()
  if(alone)
    add_library(${name}_headers OBJECT EXCLUDE_FROM_ALL ${alone})
    target_link_libraries(${name}_headers PRIVATE ${target} ${headers_torch})
    target_compile_options(${name}_headers PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O0>)
    add_dependencies(check_headers ${name}_headers)
  endif()

  # Deferred: a room's CMakeLists.txt may go on after room(), and what it adds then counts too. EVAL fills in the
  # values now; lists pass with commas.
  string(REPLACE ";" "," deps "${ROOM_DEPS}")
  string(REPLACE ";" "," targets "${targets}")
  cmake_language(EVAL CODE "cmake_language(DEFER DIRECTORY [[${CMAKE_SOURCE_DIR}]] CALL flywheel_check_room ${name} [[${deps}]] [[${targets}]])")
endfunction()
