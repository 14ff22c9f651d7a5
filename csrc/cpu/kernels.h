// The operations of backend.h on the CPU: run now, on the calling thread and the process's pool. No
// queue, no Node-API.
#pragma once

#include <string>

#include "../../cuda/nn_params.h"
#include "../../cuda/params.h"

namespace flash_gqa::cpu {

// The instruction set chosen at run time: "avx512", "avx2" or "portable". FLASH_GQA_ISA lowers it.
const char* isa_name();

void attention(const AttentionParams& params);
void rope_rows(const RopeRowsParams& params);
void rope_apply(const RopeApplyParams& params);
void append_kv(const AppendKvParams& params);
void repeat_kv(const RepeatKvParams& params);
void slice_window(const SliceWindowParams& params);
void merge_states(const MergeStatesParams& params);
void copy_pages(const CopyPagesParams& params);
void scatter(const ScatterParams& params);

void convert(void* dst, DType to, const void* src, DType from, int64_t elements);

void embedding(const EmbeddingParams& params);
void linear(const LinearParams& params);
void rms_norm(const RmsNormParams& params);
void add(const AddParams& params);
void silu_mul(const SiluMulParams& params);
void top_k(const TopKParams& params);
void sample(const SampleParams& params);
void gather_rows(const GatherRowsParams& params);

}  // namespace flash_gqa::cpu
