// Launches the Hopper decode kernel.
#pragma once

#include "decode.cuh"
#include "launch.cuh"

namespace flash_gqa::cuda::sm90 {

// K or V as DecodeMaps describes them. Where head_dim ends inside a half of 64 columns, a box is one half of the whole
// row, and the engine fills the rest with zeros; otherwise a box is all halves, and a page one copy.
inline bool encode_decode_map(const AttentionParams& p, const void* base, int64_t stride_token,
                              const DecodeArgs& args, CUtensorMap& map) {
  const KvView& kv = p.kv;
  const uint64_t d = p.head_dim, elem = 2, heads = p.num_kv_heads;
  const bool paged = kv.page_table != nullptr;
  const uint64_t row = paged ? d * elem : stride_token * elem;
  const uint64_t halves = args.box_halves;
  const uint64_t dims[5] = {halves == d / 64 && d % 64 == 0 ? 64 : d,
                            paged ? static_cast<uint64_t>(kv.page_size) : at_least_one(kv.total_kv),
                            halves, heads, paged ? at_least_one(kv.num_pages) : 1};
  const uint64_t strides[4] = {row, 128, paged ? kv.page_size * d * elem : d * elem,
                               paged ? kv.stride_page * elem : 16};
  const uint32_t box[5] = {64, static_cast<uint32_t>(args.box_keys), static_cast<uint32_t>(halves),
                           1, 1};
  return encode_map<5>(map, p.dtype, base, dims, strides, box);
}

inline bool encode_decode_maps(const DecodeArgs& args, DecodeMaps& maps) {
  const AttentionParams& p = args.params;
  const KvView& kv = p.kv;
  const void* v = kv.v;
  if (kv.page_table != nullptr) {
    v = static_cast<const uint8_t*>(kv.k) +
        2 * static_cast<int64_t>(p.num_kv_heads) * kv.page_size * p.head_dim;
  }
  return encode_decode_map(p, kv.k, kv.k_stride_token, args, maps.k) &&
         encode_decode_map(p, v, kv.v_stride_token, args, maps.v);
}

// blocks: a multiple of cluster_size.
template <class Traits>
cudaError_t launch_decode(DecodeArgs args, int blocks, int cluster_size, cudaStream_t stream) {
  args.shape.tile_kv = Traits::kTileKv;
  args.box_keys = box_keys(Traits::kTileKv,
                           args.params.kv.page_table != nullptr ? args.params.kv.page_size : 0);
  args.box_halves = args.params.head_dim % 64 == 0 ? Traits::Math::kHalves : 1;
  DecodeMaps maps;
  if (!encode_decode_maps(args, maps)) return cudaErrorInvalidValue;

  const auto kernel = attention_decode_kernel<Traits>;
  constexpr int kSharedBytes = sizeof(typename Traits::SharedStorage);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           kSharedBytes);
  if (error != cudaSuccess) return error;
  if (cluster_size > 8) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = DECODE_PDL;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster_size;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(Traits::kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, args, maps);
}

}  // namespace flash_gqa::cuda::sm90
