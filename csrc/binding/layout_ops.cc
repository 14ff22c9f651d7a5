// Operations that move or merge rows: repeatKv, sliceWindow, mergeStates, copyPages.
#include <vector>

#include "../../cuda/mask.h"
#include "args.h"
#include "functions.h"
#include "values.h"

namespace flash_gqa::binding {

Napi::Value repeat_kv(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "repeatKv");
  const RowsRef x = args.rows("x");
  const Ref out = args.ref("out");
  RepeatKvParams params{};
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.num_kv_heads = args.i32("numKvHeads", 1);
  params.head_dim = args.i32("headDim", 1);
  params.group_size = args.i32("groupSize", 1);
  args.end();

  args.require(x);
  args.require(out);
  const int64_t width = product(params.num_kv_heads, params.head_dim);
  params.x = args.input_rows(x, params.rows, width, params.dtype);
  params.x_stride_token = x.stride;
  params.out =
      args.output(out, product(params.rows, width, params.group_size), dtype_bytes(params.dtype));
  args.check_overlap();
  if (params.rows > 0) args.backend().repeat_kv(params);
  return environment.env().Undefined();
}

Napi::Value slice_window(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "sliceWindow");
  const RowsRef x = args.rows("x");
  const Ref out = args.ref("out");
  SliceWindowParams params{};
  params.dtype = args.float_dtype();
  params.kv_len = args.i32("kvLen");
  params.window = args.i32("window", 1);
  params.sink_tokens = args.i32("sinkTokens");
  params.out_len = args.i32("outLen");
  params.row_elements = args.i32("rowElements", 1);
  args.end();

  args.require(x);
  args.require(out);
  args.expect(
      params.out_len == slice_window_length(params.kv_len, params.window, params.sink_tokens),
      "outLen does not match kvLen, window and sinkTokens");
  params.x = args.input_rows(x, params.kv_len, params.row_elements, params.dtype);
  params.x_stride_token = x.stride;
  params.out =
      args.output(out, product(params.out_len, params.row_elements), dtype_bytes(params.dtype));
  args.check_overlap();
  if (params.out_len > 0) args.backend().slice_window(params);
  return environment.env().Undefined();
}

Napi::Value merge_states(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "mergeStates");
  MergeStatesParams params{};
  params.num_parts = args.i32("parts", 1, kMaxMergeParts);
  std::vector<Ref> o, lse;
  for (int32_t i = 0; i < params.num_parts; ++i) o.push_back(args.ref("o"));
  for (int32_t i = 0; i < params.num_parts; ++i) lse.push_back(args.ref("lse"));
  const Ref out = args.ref("out");
  const Ref out_lse = args.ref("outLse");
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.num_heads = args.i32("numHeads", 1);
  params.head_dim = args.i32("headDim", 1);
  args.end();

  const int64_t states = product(params.rows, params.num_heads);
  const int64_t elements = product(states, params.head_dim);
  std::vector<const void*> o_parts;
  std::vector<const float*> lse_parts;
  for (const Ref& part : o) {
    args.require(part);
    o_parts.push_back(args.input(part, elements, dtype_bytes(params.dtype)));
  }
  for (const Ref& part : lse) {
    args.require(part);
    lse_parts.push_back(args.input<float>(part, states));
  }
  args.require(out);
  params.o = o_parts.data();
  params.lse = lse_parts.data();
  params.out = args.output(out, elements, dtype_bytes(params.dtype));
  params.out_lse = args.output<float>(out_lse, states);
  args.check_overlap();
  if (params.rows > 0) args.backend().merge_states(params);
  return environment.env().Undefined();
}

Napi::Value copy_pages(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "copyPages");
  const Ref pool = args.ref("pool");
  CopyPagesParams params{};
  params.page_bytes = args.i64("pageBytes");
  params.num_layers = args.i32("numLayers");
  params.num_pages = args.i32("numPages");
  params.num_pairs = args.i32("numPairs");
  args.end();
  refuse_in_capture(*args.device(), "copyPages");

  args.require(pool);
  params.pool =
      args.output(pool, product(params.num_layers, params.num_pages, params.page_bytes), 1);
  params.src_dst = pairs_at(info, 1, params.num_pairs);
  for (int64_t i = 0; i < 2 * int64_t{params.num_pairs}; ++i) {
    const int32_t page = params.src_dst[i];
    if (page < 0 || page >= params.num_pages) {
      args.fail("page " + std::to_string(page) + " is outside [0, " +
                std::to_string(params.num_pages) + ")");
    }
  }
  if (params.num_pairs > 0 && params.num_layers > 0) args.backend().copy_pages(params);
  return environment.env().Undefined();
}

}  // namespace flash_gqa::binding
