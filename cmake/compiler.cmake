# Language, warnings, sanitizers, ccache, CUDA.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()
# -g1 keeps symbolized stacks at a third of the size; CHECKs stay on in every build.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")

# Bits must not depend on whether the compiler chose to fuse a multiply and an add: kernels that want
# FMA say so with intrinsics, or fmaf() in a .cu file.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
                    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>
                    "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-unused-parameter;-Wno-missing-field-initializers>")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-march=x86-64-v2>)
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
  # ccache needs this to cache what was compiled with a precompiled header.
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>")
endif()

if(FLYWHEEL_SANITIZER)
  # -O1: half the time to compile, and the stacks of a report name every function that was called.
  # GCC's -Wmaybe-uninitialized finds false ones in the standard library then.
  add_compile_options(-fsanitize=${FLYWHEEL_SANITIZER} -fno-omit-frame-pointer -O1 -Wno-maybe-uninitialized)
  add_link_options(-fsanitize=${FLYWHEEL_SANITIZER})
  set(FLYWHEEL_TORCH OFF)  # libtorch is not built with sanitizers and reports false errors
endif()

set(FLYWHEEL_HAS_CUDA OFF)
if(NOT FLYWHEEL_CUDA STREQUAL "OFF" AND NOT FLYWHEEL_SANITIZER)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    find_package(CUDAToolkit REQUIRED)
    set(FLYWHEEL_HAS_CUDA ON)
    add_compile_definitions(FLYWHEEL_HAS_CUDA=1)
  elseif(FLYWHEEL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FLYWHEEL_CUDA=ON but no nvcc was found; set CUDACXX or use FLYWHEEL_CUDA=OFF")
  endif()
endif()
