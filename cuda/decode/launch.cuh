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

template <class Element, int kHeadDim, int kRows, bool kSmallPages>
struct Kernel {
  static constexpr Filler kFiller = kSmallPages ? Filler::kSmallPages : Filler::kBoxes;
  using T = Traits<Element, kHeadDim, kRows, kFiller>;
  static constexpr auto kCode = attention_decode_kernel<Element, kHeadDim, kRows, kSmallPages>;

  static size_t smem(int stages, bool copy_engine) {
    if (kRows != 16 || copy_engine) return SharedStorage<T>::bytes(stages);
    return sizeof(SharedStorage<Traits<Element, kHeadDim, 16, Filler::kOlderCards>>);
  }

  // On the current device.
  static bool has_copy_engine() { return runs_sm90_code(reinterpret_cast<const void*>(kCode)); }

  static cudaError_t launch(const DecodeArgs& args, cudaStream_t stream) {
    const bool copy_engine = has_copy_engine();
    const size_t bytes = smem(args.stages, copy_engine);
    const cudaError_t status = cudaFuncSetAttribute(
        kCode, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (status != cudaSuccess) return status;
    DecodeArgs with_maps = args;
    if (copy_engine && !kSmallPages) {
      const bool whole = args.params.head_dim == 64 * T::Tile::kHalves;
      with_maps.boxes = whole ? 1 : T::Tile::kHalves;
      if (!encode_slab_maps(args.params, whole, with_maps.maps)) return cudaErrorInvalidValue;
    }
    return launch_dependent(kCode, dim3(args.team_blocks, args.teams / args.teams_per_block),
                            dim3(T::kThreads), bytes, stream, with_maps);
  }

  static constexpr DecodeVariant variant(const char* name) {
    return {kHeadDim, T::kRows, T::kBlocksPerSm, T::kStages, T::kPlaysTwo, smem, name, launch};
  }
};

template <class Element, int kHeadDim, int kRows>
using ByBoxes = Kernel<Element, kHeadDim, kRows, false>;
template <class Element, int kHeadDim, int kRows>
using ByRows = Kernel<Element, kHeadDim, kRows, true>;

template <class Element, int kHeadDim>
const DecodeFamily& decode_family() {
  static constexpr DecodeFamily family{
      {ByBoxes<Element, kHeadDim, 8>::variant("decode mma 8x16"),
       ByBoxes<Element, kHeadDim, 16>::variant("decode mma 16x16"),
       ByBoxes<Element, kHeadDim, 32>::variant("decode mma 32x16")},
      {ByRows<Element, kHeadDim, 8>::variant("decode mma 8x16"),
       ByRows<Element, kHeadDim, 16>::variant("decode mma 16x16"),
       ByRows<Element, kHeadDim, 32>::variant("decode mma 32x16")},
      ByBoxes<Element, kHeadDim, 16>::has_copy_engine};
  return family;
}

}  // namespace flash_gqa::cuda::decode
