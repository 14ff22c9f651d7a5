// The launches of one (dtype, head_dim). Included by the generated instances alone.
#pragma once

#include "decode.cuh"

namespace flash_gqa::cuda::decode {

// Of K and V: [pages, num_kv_heads, halves, keys of a page, 64 columns]. A box is 16 keys and all
// columns, or 64 of them where head_dim is less than the kernel's, so that what lies behind it arrives
// as zeros.
inline bool encode_slab_maps(const AttentionParams& p, bool whole, KvMaps& maps) {
  const KvView& kv = p.kv;
  const uint64_t d = p.head_dim, elem = 2, heads = p.num_kv_heads;
  const uint64_t columns = whole ? 64 : d, halves = whole ? d / 64 : 1;
  const uint32_t box[5] = {64, kSlabKeys, static_cast<uint32_t>(halves), 1, 1};
  if (kv.page_table != nullptr) {
    const uint64_t head_bytes = kv.page_size * d * elem;
    const uint64_t dims[5] = {columns, static_cast<uint64_t>(kv.page_size), halves, heads,
                              at_least_one(kv.num_pages)};
    const uint64_t strides[4] = {d * elem, 128, head_bytes, kv.stride_page * elem};
    const auto* pages = static_cast<const uint8_t*>(kv.k);
    return encode_map<5>(maps.k, p.dtype, pages, dims, strides, box) &&
           encode_map<5>(maps.v, p.dtype, pages + heads * head_bytes, dims, strides, box);
  }
  const uint64_t dims[5] = {columns, at_least_one(kv.total_kv), halves, heads, 1};
  const uint64_t k_strides[4] = {kv.k_stride_token * elem, 128, d * elem,
                                 16};  // one page: not used
  const uint64_t v_strides[4] = {kv.v_stride_token * elem, 128, d * elem, 16};
  return encode_map<5>(maps.k, p.dtype, kv.k, dims, k_strides, box) &&
         encode_map<5>(maps.v, p.dtype, kv.v, dims, v_strides, box);
}

template <class Element, int kHeadDim, int kGroups>
size_t smem_bytes(int stages, bool copy_engine) {
  if (kGroups > 1 || copy_engine)
    return SharedStorage<Traits<Element, kHeadDim, kGroups, true>>::bytes(stages);
  return sizeof(SharedStorage<Traits<Element, kHeadDim, 1, false>>);
}

template <class Element, int kHeadDim>
bool fills_rings() {
  return runs_sm90_code(
      reinterpret_cast<const void*>(attention_decode_kernel<Element, kHeadDim, 1>));
}

template <class Element, int kHeadDim, int kGroups>
cudaError_t launch(const DecodeArgs& args, cudaStream_t stream) {
  using T = Traits<Element, kHeadDim, kGroups, true>;
  const auto kernel = attention_decode_kernel<Element, kHeadDim, kGroups>;
  const bool copy_engine = fills_rings<Element, kHeadDim>();
  const size_t smem = smem_bytes<Element, kHeadDim, kGroups>(args.stages, copy_engine);
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
  if (status != cudaSuccess) return status;
  DecodeArgs with_maps = args;
  if (copy_engine) {
    const bool whole = args.params.head_dim == 64 * T::Tile::kHalves;
    with_maps.boxes = whole ? 1 : T::Tile::kHalves;
    if (!args.small_pages() && !encode_slab_maps(args.params, whole, with_maps.maps))
      return cudaErrorInvalidValue;
  }
  return launch_dependent(kernel, dim3(args.team_blocks, args.teams), dim3(T::kThreads), smem,
                          stream, with_maps);
}

template <class Element, int kHeadDim, int kGroups>
constexpr DecodeVariant variant(const char* name) {
  using T = Traits<Element, kHeadDim, kGroups, true>;
  return {kHeadDim,
          T::kRows,
          T::kBlocksPerSm,
          T::kStages,
          smem_bytes<Element, kHeadDim, kGroups>,
          name,
          launch<Element, kHeadDim, kGroups>};
}

template <class Element, int kHeadDim>
const DecodeFamily& decode_family() {
  static constexpr DecodeFamily family{variant<Element, kHeadDim, 1>("decode mma 16x16"),
                                       variant<Element, kHeadDim, 2>("decode mma 32x16"),
                                       fills_rings<Element, kHeadDim>};
  return family;
}

}  // namespace flash_gqa::cuda::decode
