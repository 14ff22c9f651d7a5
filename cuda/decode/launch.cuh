// The launches of one (dtype, head_dim). Included by the generated instances alone.
#pragma once

#include "decode.cuh"

namespace flash_gqa::cuda::decode {

// Of K and V: [pages, num_kv_heads, halves, keys of a page, 64 columns]. A box is 16 keys and all
// columns, or 64 of them where head_dim is less than the kernel's, so that what lies behind it arrives
// as zeros.
inline bool encode_slab_maps(const AttentionParams& p, bool whole, KvMaps& maps) {
  const KvRows at = kv_rows(p);
  const uint64_t d = p.head_dim, halves = whole ? d / 64 : 1;
  const uint32_t box[5] = {64, kSlabKeys, static_cast<uint32_t>(halves), 1, 1};
  const uint64_t dims[5] = {whole ? 64 : d, at.rows, halves, static_cast<uint64_t>(p.num_kv_heads),
                            at.pages};
  const uint64_t k_strides[4] = {at.k_row, 128, at.head, at.page};
  const uint64_t v_strides[4] = {at.v_row, 128, at.head, at.page};
  return encode_map<5>(maps.k, p.dtype, at.k, dims, k_strides, box) &&
         encode_map<5>(maps.v, p.dtype, at.v, dims, v_strides, box);
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
          T::kUsualStages,
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
