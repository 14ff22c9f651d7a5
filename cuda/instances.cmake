# The attention kernels that are compiled: this list and nothing else. One small file per (dtype,
# head_dim), so that a build spreads over the cores.
#
#   flash_gqa_add_attention_instances(<target>)   for the target that compiles attention.cu
set(FLASH_GQA_HEAD_DIMS 64 96 128 192 256 CACHE STRING "head_dim instances, ascending")
set(FLASH_GQA_ELEMENTS float __half __nv_bfloat16)
set(FLASH_GQA_CUDA_DIR ${CMAKE_CURRENT_LIST_DIR})

function(flash_gqa_add_attention_instances target)
  set(out ${CMAKE_CURRENT_BINARY_DIR}/instances)
  set(sources)
  foreach(ELEMENT IN LISTS FLASH_GQA_ELEMENTS)
    string(REGEX REPLACE "^_+(nv_)?" "" name ${ELEMENT})
    configure_file(${FLASH_GQA_CUDA_DIR}/instances/combine.cu.in ${out}/combine_${name}.cu @ONLY)
    list(APPEND sources ${out}/combine_${name}.cu)
    foreach(HEAD_DIM IN LISTS FLASH_GQA_HEAD_DIMS)
      set(file ${out}/forward_${name}_${HEAD_DIM}.cu)
      configure_file(${FLASH_GQA_CUDA_DIR}/instances/forward.cu.in ${file} @ONLY)
      list(APPEND sources ${file})
    endforeach()
  endforeach()
  list(JOIN FLASH_GQA_HEAD_DIMS ", " head_dims)
  configure_file(${FLASH_GQA_CUDA_DIR}/instances/head_dims.h.in ${out}/head_dims.h @ONLY)
  target_sources(${target} PRIVATE ${sources})
  target_include_directories(${target} PRIVATE ${out})
endfunction()
