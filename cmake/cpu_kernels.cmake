# The CPU kernels. micro.cc is compiled once per instruction set, chosen at run time by isa.cc.
add_library(gqa_cpu OBJECT
  csrc/cpu/append_kv.cc
  csrc/cpu/attention.cc
  csrc/cpu/convert.cc
  csrc/cpu/isa.cc
  csrc/cpu/linear.cc
  csrc/cpu/merge_states.cc
  csrc/cpu/norm.cc
  csrc/cpu/rearrange.cc
  csrc/cpu/rope.cc
  csrc/cpu/sampling.cc)
target_compile_options(gqa_cpu PRIVATE -Wall -Wextra)

set(FLASH_GQA_MICRO_TARGETS)
set(FLASH_GQA_MICRO_OBJECTS)
function(add_micro isa)
  add_library(gqa_micro_${isa} OBJECT csrc/cpu/micro.cc)
  target_compile_definitions(gqa_micro_${isa} PRIVATE GQA_ISA=${isa})
  target_compile_options(gqa_micro_${isa} PRIVATE -Wall -Wextra ${ARGN})
  list(APPEND FLASH_GQA_MICRO_TARGETS gqa_micro_${isa})
  list(APPEND FLASH_GQA_MICRO_OBJECTS $<TARGET_OBJECTS:gqa_micro_${isa}>)
  set(FLASH_GQA_MICRO_TARGETS ${FLASH_GQA_MICRO_TARGETS} PARENT_SCOPE)
  set(FLASH_GQA_MICRO_OBJECTS ${FLASH_GQA_MICRO_OBJECTS} PARENT_SCOPE)
endfunction()

# Portable first: the linker keeps the first copy of an inline function, and it must run everywhere.
add_micro(portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  add_micro(avx2 -mavx2 -mfma -mf16c)
  add_micro(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c)
endif()
