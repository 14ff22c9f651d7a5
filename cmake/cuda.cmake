# CUDA, where nvcc is found. Sets FLASH_GQA_CUDA_{BACKEND,OBJECTS,LIBRARIES,SUMMARY}.
set(default_cuda "$ENV{FLASH_GQA_CUDA}")
if(NOT default_cuda)
  set(default_cuda auto)
endif()
set(FLASH_GQA_CUDA "${default_cuda}" CACHE STRING "Build the CUDA back end: auto, on or off")
set(default_archs "$ENV{FLASH_GQA_CUDA_ARCHS}")
if(NOT default_archs)
  set(default_archs "80;90a")
endif()
set(FLASH_GQA_CUDA_ARCHS "${default_archs}" CACHE STRING "Architectures, as CMAKE_CUDA_ARCHITECTURES")

string(TOLOWER "${FLASH_GQA_CUDA}" cuda_choice)
if(NOT cuda_choice MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "flash-gqa: FLASH_GQA_CUDA expected auto, on or off, got '${FLASH_GQA_CUDA}'")
endif()

set(FLASH_GQA_CUDA_BACKEND csrc/cuda_backend_stub.cc)
set(FLASH_GQA_CUDA_OBJECTS)
set(FLASH_GQA_CUDA_LIBRARIES)
if(cuda_choice STREQUAL "off")
  set(FLASH_GQA_CUDA_SUMMARY "CPU only: FLASH_GQA_CUDA=off")
  return()
endif()

# check_language() knows PATH and CUDACXX only.
if(NOT DEFINED ENV{CUDACXX})
  find_program(FLASH_GQA_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH
    PATHS /usr/local/cuda /opt/cuda /usr/lib/cuda PATH_SUFFIXES bin)
  if(FLASH_GQA_NVCC)
    set(ENV{CUDACXX} "${FLASH_GQA_NVCC}")
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(cuda_choice STREQUAL "on")
    message(FATAL_ERROR
      "flash-gqa: FLASH_GQA_CUDA=on, but no working nvcc in PATH, CUDA_HOME, CUDA_PATH or "
      "/usr/local/cuda: install the CUDA toolkit, point CUDA_HOME at it, or use FLASH_GQA_CUDA=auto")
  endif()
  set(FLASH_GQA_CUDA_SUMMARY
    "CPU only: no working nvcc in PATH, CUDA_HOME, CUDA_PATH or /usr/local/cuda")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${FLASH_GQA_CUDA_ARCHS})
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 20)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25.1 does not know that nvcc has it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")

# SASS runs only inside its major version, so that sm90/ is compiled for 90a alone, and everything
# else for the whole list.
add_library(gqa_cuda OBJECT
  cuda/append_kv.cu
  cuda/attention.cu
  cuda/convert.cu
  cuda/merge_states.cu
  cuda/rearrange.cu
  cuda/rope.cu
  cuda/nn/embedding.cu
  cuda/nn/linear.cu
  cuda/nn/norm.cu
  cuda/nn/small_linear.cu
  cuda/nn/sampling.cu)
include(cuda/instances.cmake)
flash_gqa_add_attention_instances(gqa_cuda)
set(FLASH_GQA_CUDA_OBJECTS $<TARGET_OBJECTS:gqa_cuda>)
set(cuda_targets gqa_cuda)
if(FLASH_GQA_CUDA_ARCHS MATCHES "(^|;)90a")
  add_library(gqa_cuda_sm90 OBJECT)
  flash_gqa_add_sm90_sources(gqa_cuda_sm90)
  set_target_properties(gqa_cuda_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real)
  list(APPEND FLASH_GQA_CUDA_OBJECTS $<TARGET_OBJECTS:gqa_cuda_sm90>)
  list(APPEND cuda_targets gqa_cuda_sm90)
  target_compile_definitions(gqa_cuda PRIVATE FLASH_GQA_SM90=1)
endif()
foreach(target ${cuda_targets})
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xcompiler=-Wall>)
endforeach()
string(REPLACE ";" " " archs_text "${FLASH_GQA_CUDA_ARCHS}")
add_compile_definitions("FLASH_GQA_CUDA_ARCHS=\"${archs_text}\"")

set(FLASH_GQA_CUDA_BACKEND
  csrc/cublaslt.cc
  csrc/cuda_backend.cc
  csrc/cuda_context.cc
  csrc/cuda_loader.cc
  csrc/cuda_memory.cc
  csrc/cuda_mover.cc
  csrc/cuda_probe.cc
  csrc/cuda_waiter.cc)
set(FLASH_GQA_CUDA_LIBRARIES CUDA::cudart_static)
set(FLASH_GQA_CUDA_SUMMARY
  "CPU and CUDA ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER}), architectures ${FLASH_GQA_CUDA_ARCHS}")
