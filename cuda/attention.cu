// Which kernels run, over which grid. Everything that may change while a captured graph lives is
// left to the device: the host knows upper bounds only.
#include "attention.h"
#include "decode/decode_args.h"
#include "dispatch.h"
#include "forward_args.h"
#include "sections.h"
#include "split.h"
#ifdef FLASH_GQA_SM90
#include "sm90/prefill.h"
#endif

namespace flash_gqa::cuda {
namespace {

constexpr int64_t kMaxGrid = 0x7fffffff;
constexpr size_t kWorkspaceAlign = 256;
constexpr size_t kReservedSmem = 1024;  // of each resident block, by the system
constexpr int64_t kManyHeads = 8;       // of KV, in all sequences
// What a decode block that has its multiprocessor to itself has been seen to read at head_dim 128 and more,
// GB/s: 32 KB in 1.1 us. Narrower keys take hardly less time.
constexpr double kLoneBlockGbps = 29;
// Dense sequences of so many keys in the mean, or of the fewer where so many heads stand side by side, are long
// enough for a block that has its multiprocessor to itself to go from one to the next.
constexpr int32_t kLongKeys = 6144;
constexpr int32_t kFewerLongKeys = 2048;
constexpr int32_t kWideTeam = 32;
// Sequences that are shared by so many blocks all end together.
constexpr int32_t kManyParts = 8;

struct Launch {
  const Variant* variant;
  ForwardArgs args;
  int64_t items;
};

struct Plan {
  Launch launches[kNumRoutes];
  int count = 0;
  const decode::DecodeVariant* decode = nullptr;  // of decode/, for sequences of few rows
  decode::DecodeArgs decode_args;
  size_t partial_o_bytes = 0;  // launches follow each other on one stream and share the memory
  size_t partial_state_bytes = 0;
  bool hopper_prefill = false;  // sequences of more rows than kShort takes go to sm90/
  size_t hopper_bytes = 0;
  size_t workspace_bytes() const {
    const size_t partial_bytes = partial_o_bytes + partial_state_bytes;
    return partial_bytes > hopper_bytes ? partial_bytes : hopper_bytes;
  }
};

const Family* find_family(const AttentionParams& params) {
  return with_dtype(params.dtype, [&](auto type) -> const Family* {
    using Element = typename decltype(type)::type;
    return with_head_dim(params.head_dim, [](auto head_dim) -> const Family* {
      return &forward_family<Element, decltype(head_dim)::value>();
    });
  });
}

const decode::DecodeFamily* find_decode(const AttentionParams& params) {
  return with_dtype(params.dtype, [&](auto type) -> const decode::DecodeFamily* {
    using Element = typename decltype(type)::type;
    if constexpr (sizeof(Element) != 2) {
      return nullptr;
    } else {
      return with_head_dim(params.head_dim, [](auto head_dim) -> const decode::DecodeFamily* {
        return &decode::decode_family<Element, decltype(head_dim)::value>();
      });
    }
  });
}

const Variant* find_variant(const Family& family, Route route, const DeviceTraits& device) {
  const Variant& wanted = family.routes[route];
  return wanted.smem <= device.max_smem ? &wanted : &family.routes[kShort];
}

// No item visits more tiles than this, unless a length on the device exceeds max_kv_len.
int32_t max_tiles(const AttentionParams& params, int32_t tile_kv, int32_t item_tokens) {
  const BatchView& batch = params.batch;
  const bool prefix = params.prefix_len > 0 || params.prefix_lens != nullptr;
  const int32_t tokens = min_i32(q_len_bound(batch), item_tokens);
  // Inside a prefix a row sees keys on its right too: there the window is no bound.
  const Mask mask{
      tokens, kv_len_bound(batch), params.causal, prefix ? 0 : params.window, params.sink_tokens,
      0};
  const TileRange tiles(mask.rows(0, tokens - 1), tile_kv);
  return tiles.count() + 2;  // both ends of the band may lie anywhere in a tile
}

// fixed_split divides sequences of at most kRouteMaxRows[kShort] rows into splits of a fixed length
// and leaves longer ones whole; otherwise items are divided until the device is full.
void choose_splits(Launch& launch, Route route, const DeviceTraits& device) {
  ForwardArgs& args = launch.args;
  const AttentionParams& params = args.params;
  const Variant& variant = *launch.variant;
  const int32_t group_size = params.num_q_heads / params.num_kv_heads;
  const int32_t tiles = max_tiles(params, variant.tile_kv, variant.tile_q / group_size + 2);
  if (params.fixed_split > 0) {
    args.split_tiles = route == kPrefill ? 0 : ceil_div(params.fixed_split, variant.tile_kv);
    args.max_splits = route == kPrefill ? 1 : ceil_div(tiles, args.split_tiles);
    return;
  }
  const int64_t by_smem = device.max_smem / variant.smem;
  const int64_t per_sm = by_smem < variant.blocks_per_sm ? by_smem : variant.blocks_per_sm;
  const int64_t fill = device.num_sms * (per_sm < 1 ? 1 : per_sm) / launch.items;
  args.split_tiles = 0;
  args.max_splits =
      max_i32(1, min_i32(static_cast<int32_t>(fill), ceil_div(tiles, kMinTilesPerSplit)));
}

// The Hopper kernel is the fastest, but for too few tiles to occupy a quarter of the device where it
// does not divide their keys. Depends on the shape alone, not on lengths, so that paged and dense keys
// take the same way.
bool takes_hopper_prefill([[maybe_unused]] const AttentionParams& params,
                          [[maybe_unused]] const DeviceTraits& device) {
#ifdef FLASH_GQA_SM90
  if (!sm90::prefill_supports(params, device)) return false;
  const int64_t rows = static_cast<int64_t>(q_len_bound(params.batch)) * params.num_q_heads;
  return params.fixed_split > 0 || sm90::prefill_divides(params) ||
         rows * params.batch.batch_size >= device.num_sms / 4 * 128;
#else
  return false;
#endif
}

bool fits(const decode::DecodeVariant& variant, const DeviceTraits& device) {
  return variant.smem(decode::kMinStages, device.copy_engine) <= device.max_smem;
}

// Up to how many rows the sequences may have that decode/ takes, or 0: two tiles of rows. Depends on
// the shape alone, so that a sequence's kernel does not change with what else is in the batch.
// fixed_split asks for splits that do not depend on the rest of the batch either; decode/ divides the
// batch as a whole.
int32_t decode_rows(const AttentionParams& params, const DeviceTraits& device,
                    const decode::DecodeFamily* family) {
  if (family == nullptr || params.fixed_split > 0 || device.merge_places == nullptr) return 0;
  const decode::DecodeVariant& narrow = family->tiles[decode::kRows16];
  const decode::DecodeVariant& wide = family->tiles[decode::kRows32];
  if (device.sm >= 90 && device.copy_engine && fits(wide, device)) return 2 * wide.rows;
  return fits(narrow, device) ? 2 * narrow.rows : 0;
}

// The tile for sequences of up to `rows` rows, of which decode/ takes up to max_rows. Few heads are ready sooner in
// two tiles of 16 rows; many read their keys once in one of 32.
decode::TileRows choose_tile(const AttentionParams& params, const DeviceTraits& device,
                             const decode::DecodeFamily& family, int32_t max_rows, int32_t rows) {
  const decode::DecodeVariant& eight = family.tiles[decode::kRows8];
  if (device.copy_engine && rows <= eight.rows && fits(eight, device)) return decode::kRows8;
  const decode::DecodeVariant& narrow = family.tiles[decode::kRows16];
  if (max_rows <= 2 * narrow.rows) return decode::kRows16;  // there is no other
  if (!fits(narrow, device)) return decode::kRows32;
  const int64_t heads = static_cast<int64_t>(params.batch.batch_size) * params.num_kv_heads;
  const bool few_heads = rows <= 2 * narrow.rows && heads < kManyHeads;
  return rows <= narrow.rows || few_heads ? decode::kRows16 : decode::kRows32;
}

// Known where keys are dense: their number. (A bound on lengths says nothing about those of a captured step.)
// Shuffled pages are better waited for by more rings.
bool has_long_keys(const AttentionParams& params, int32_t team_blocks) {
  if (params.kv.page_table != nullptr) return false;
  const int32_t mean = params.kv.total_kv / params.batch.batch_size;
  return mean >= kLongKeys || (team_blocks >= kWideTeam && mean >= kFewerLongKeys);
}

void plan_decode(Plan& plan, const AttentionParams& params, const DeviceTraits& device,
                 const decode::DecodeFamily& family, int32_t max_rows, int32_t rows) {
  // Keys in small pages are divided as others: all but the kernel depends on the tile alone.
  const decode::TileRows tile = choose_tile(params, device, family, max_rows, rows);
  const decode::DecodeVariant& variant = family.tiles[tile];
  decode::DecodeArgs& args = plan.decode_args;
  args = decode::DecodeArgs{};
  args.params = params;
  args.group_size = params.num_q_heads / params.num_kv_heads;
  args.group_inverse = 65536 / args.group_size + 1;
  args.max_rows = max_rows;
  args.page_mask = params.kv.page_table != nullptr ? params.kv.page_size - 1 : -1;
  args.rows = min_i32(rows, variant.rows);
  args.row_tiles = ceil_div(rows, variant.rows);
  plan.decode = device.copy_engine && args.small_pages() ? &family.small_pages[tile] : &variant;
  args.stages = variant.stages;
  const auto smem = [&] { return variant.smem(args.stages, device.copy_engine); };
  while (args.stages > decode::kMinStages && smem() > device.max_smem) --args.stages;
  // All blocks must be resident together: they wait for each other's parts.
  const size_t block_smem = smem() + kReservedSmem;
  const auto fit = static_cast<int32_t>((device.max_smem + kReservedSmem) / block_smem);
  const int32_t per_sm = min_i32(variant.blocks_per_sm, fit);
  // Two places for each block of a team for a part of every 8 columns of a row: two float4 and a float2.
  const int64_t places = 2ll * args.rows * variant.head_dim / 8;
  const auto most_blocks = static_cast<int32_t>(kMergeBytes / (places * (32 + 8)));
  const int32_t alone = min_i32(device.num_sms, most_blocks);
  const int32_t most = min_i32(device.num_sms * per_sm, most_blocks);
  const int32_t columns = params.num_kv_heads * args.row_tiles;
  args.team_blocks = min_i32(columns, alone);
  // One block on each multiprocessor leaves room for one of the next launch, which guesses meanwhile. A
  // second one pays where there are more sequences than teams: it reads on while the first goes from one
  // to the next; and where memory has more to give than all of them can take.
  const int32_t teams_alone = alone / args.team_blocks;
  const double taken = kLoneBlockGbps * min_i32(params.head_dim, 128) / 128;
  const bool keeps_up = device.memory_gbps <= taken * teams_alone * args.team_blocks;
  const bool lone = params.batch.batch_size <= teams_alone && keeps_up;
  args.teams = lone ? teams_alone : most / args.team_blocks;
  args.teams_per_block = 1;
  constexpr int32_t kTwo = decode::kMostTeamsPerBlock;
  if (!lone && device.copy_engine && variant.plays_two && keeps_up &&
      args.teams >= kTwo * teams_alone) {
    // One block that plays the parts of two, so that no bit depends on it, reads from fewer places at a time.
    args.teams = kTwo * teams_alone;
    if (has_long_keys(params, args.team_blocks)) args.teams_per_block = kTwo;
  }
  if (args.team_blocks < columns) args.teams = args.teams_per_block = 1;
  // linger.cuh. The rule of triggers_late(): where there are many rows, the next launch takes its places at
  // once, when every multiprocessor has one.
  const bool late = device.copy_engine && tile != decode::kRows32 && args.row_tiles == 1;
  if (lone && per_sm > 1 && late && args.teams < kManyParts * params.batch.batch_size &&
      device.counters != nullptr)
    args.triggered = reinterpret_cast<uint32_t*>(device.counters + kDecodeCounter);
  args.part_o = static_cast<float4*>(device.merge_places);
  args.part_state =
      reinterpret_cast<float2*>(args.part_o + 2 * places * args.teams * args.team_blocks);
}

Plan make_plan(const AttentionParams& params, const DeviceTraits& device) {
  Plan plan;
  const BatchView& batch = params.batch;
  const Family* family = find_family(params);
  const int32_t group_size = params.num_q_heads / params.num_kv_heads;
  const int64_t longest = static_cast<int64_t>(q_len_bound(batch)) * group_size;
  const int64_t shortest = batch.cu_seqlens_q != nullptr ? group_size : longest;
  if (family == nullptr || batch.batch_size <= 0 || longest <= 0) return plan;

  const decode::DecodeFamily* decode_family = find_decode(params);
  const int32_t few_rows = decode_rows(params, device, decode_family);
  if (shortest <= few_rows) {
    const auto rows = static_cast<int32_t>(longest < few_rows ? longest : few_rows);
    plan_decode(plan, params, device, *decode_family, few_rows, rows);
  }
  for (int route = 0; route < kNumRoutes; ++route) {
    const int32_t min_rows = max_i32(few_rows, route == 0 ? 0 : kRouteMaxRows[route - 1]);
    const int32_t max_rows = kRouteMaxRows[route];
    if (max_rows <= min_rows) continue;
    if (longest <= min_rows || shortest > max_rows) continue;
    if (route == kPrefill && takes_hopper_prefill(params, device)) {
      plan.hopper_prefill = true;
#ifdef FLASH_GQA_SM90
      plan.hopper_bytes = sm90::prefill_workspace(params, kRouteMaxRows[kShort], device);
#endif
      continue;
    }

    Launch& launch = plan.launches[plan.count++];
    launch.variant = find_variant(*family, static_cast<Route>(route), device);
    ForwardArgs& args = launch.args;
    args = ForwardArgs{};
    args.params = params;
    args.min_rows = min_rows;
    args.max_rows = max_rows;
    args.tile_q = launch.variant->tile_q;
    args.tile_kv = launch.variant->tile_kv;
    const int32_t rows = static_cast<int32_t>(longest < max_rows ? longest : max_rows);
    args.row_tiles = ceil_div(rows, args.tile_q);
    args.section_heads =
        section_heads(params, static_cast<int64_t>(batch.batch_size) * params.num_kv_heads);
    args.item_rows = min_i32(rows, args.tile_q);
    launch.items = static_cast<int64_t>(batch.batch_size) * params.num_kv_heads * args.row_tiles;
    choose_splits(launch, static_cast<Route>(route), device);
    if (args.max_splits == 1) continue;

    const size_t partial_rows =
        static_cast<size_t>(launch.items) * args.max_splits * args.item_rows;
    const size_t o_bytes = partial_rows * params.head_dim * sizeof(float);
    const size_t state_bytes = partial_rows * sizeof(SoftmaxState);
    if (o_bytes > plan.partial_o_bytes) plan.partial_o_bytes = o_bytes;
    if (state_bytes > plan.partial_state_bytes) plan.partial_state_bytes = state_bytes;
  }
  plan.partial_o_bytes = (plan.partial_o_bytes + kWorkspaceAlign - 1) & ~(kWorkspaceAlign - 1);
  return plan;
}

// cp.async and the stores move 16 bytes at a time.
bool aligned(const AttentionParams& params) {
  const int64_t chunk = 16 / static_cast<int64_t>(dtype_bytes(params.dtype));
  const auto ok = [](const void* ptr) { return reinterpret_cast<uintptr_t>(ptr) % 16 == 0; };
  const KvView& kv = params.kv;
  const bool strides = kv.page_table != nullptr
                           ? kv.stride_page % chunk == 0
                           : kv.k_stride_token % chunk == 0 && kv.v_stride_token % chunk == 0;
  return ok(params.q) && ok(params.o) && ok(kv.k) && ok(kv.v) && strides &&
         params.q_stride_token % chunk == 0;
}

bool valid(const AttentionParams& params, const Plan& plan, const DeviceTraits& device) {
  if (find_family(params) == nullptr || params.head_dim <= 0 || params.head_dim % 8 != 0 ||
      !aligned(params))
    return false;
  const int64_t rows =
      static_cast<int64_t>(q_len_bound(params.batch)) * (params.num_q_heads / params.num_kv_heads);
  if (rows >= 0x7fffffff - 128) return false;
  for (int i = 0; i < plan.count; ++i) {
    const Launch& launch = plan.launches[i];
    if (launch.variant->smem > device.max_smem) return false;
    if (launch.items * launch.args.max_splits > kMaxGrid) return false;
    if (launch.args.max_splits > 1 && launch.items * launch.args.item_rows > kMaxGrid) return false;
  }
  return true;
}

bool heads_divide(const AttentionParams& params) {
  return params.num_kv_heads > 0 && params.num_q_heads > 0 &&
         params.num_q_heads % params.num_kv_heads == 0;
}

}  // namespace

double memory_gbps() {
  int device = 0, kilohertz = 0, bits = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, device) != cudaSuccess) {
    cudaGetLastError();  // no launch shall answer for it
    return 0;
  }
  return 2.0 * kilohertz * bits / 8 * 1e-6;  // two transfers a clock
}

bool has_copy_engine() {
  return with_head_dim(1, [](auto head_dim) {
    return decode::decode_family<__half, decltype(head_dim)::value>().has_copy_engine();
  });
}

size_t attention_workspace(const AttentionParams& params, const DeviceTraits& device) {
  if (!heads_divide(params)) return 0;
  return make_plan(params, device).workspace_bytes();
}

cudaError_t attention(const AttentionParams& params, void* workspace, const DeviceTraits& device,
                      cudaStream_t stream) {
  if (!heads_divide(params)) return cudaErrorInvalidValue;
  Plan plan = make_plan(params, device);
  if (!valid(params, plan, device)) return cudaErrorInvalidValue;
  if (plan.workspace_bytes() > 0 && workspace == nullptr) return cudaErrorInvalidValue;

  auto* const partial_o = static_cast<unsigned char*>(workspace);
  if (plan.decode != nullptr) {
    const cudaError_t status = plan.decode->launch(plan.decode_args, stream);
    if (status != cudaSuccess) return status;
  }
  for (int i = 0; i < plan.count; ++i) {
    Launch& launch = plan.launches[i];
    ForwardArgs& args = launch.args;
    args.partial_o = reinterpret_cast<float*>(partial_o);
    args.partial_state = reinterpret_cast<SoftmaxState*>(partial_o + plan.partial_o_bytes);
    const auto blocks = static_cast<int32_t>(launch.items * args.max_splits);
    cudaError_t status = launch.variant->launch(args, blocks, stream);
    if (status == cudaSuccess && args.max_splits > 1)
      status = with_dtype(params.dtype, [&](auto type) {
        return launch_combine<typename decltype(type)::type>(args, launch.items, stream);
      });
    if (status != cudaSuccess) return status;
  }
#ifdef FLASH_GQA_SM90
  if (plan.hopper_prefill)
    return sm90::prefill(params, kRouteMaxRows[kShort], workspace, device, stream);
#endif
  return cudaSuccess;
}

const char* explain(const AttentionParams& params, const DeviceTraits& device) {
  if (!heads_divide(params)) return "none";
  const Plan plan = make_plan(params, device);
#ifdef FLASH_GQA_SM90
  if (plan.hopper_prefill) return sm90::prefill_name(params);
#endif
  if (plan.count > 0) return plan.launches[plan.count - 1].variant->name;
  return plan.decode != nullptr ? plan.decode->name : "none";
}

}  // namespace flash_gqa::cuda
