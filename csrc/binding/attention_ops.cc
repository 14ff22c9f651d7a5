// attention and what feeds it: ropeRows, ropeApply, appendKv.
#include "functions.h"
#include "views.h"

namespace flash_gqa::binding {
namespace {

AttentionParams read_attention(Args& args) {
  const RowsRef q = args.rows("q");
  const Ref o = args.ref("o");
  const Ref lse = args.ref("lse");
  const Ref sink_logits = args.ref("sinkLogits");
  const Ref prefix_lens = args.ref("prefixLens");
  const KvRefs kv = read_kv(args);
  const BatchRefs batch = read_batch(args);
  AttentionParams params{};
  params.dtype = args.float_dtype();
  const HeadShape heads = read_heads(args);
  params.num_q_heads = heads.num_q_heads;
  params.num_kv_heads = heads.num_kv_heads;
  params.head_dim = heads.head_dim;
  params.sm_scale = args.f32("smScale");
  params.soft_cap = args.f32("softCap");
  params.causal = args.flag("causal");
  params.window = args.i32("window");
  params.sink_tokens = args.i32("sinkTokens");
  params.prefix_len = args.i32("prefixLen");
  params.fixed_split = args.i32("fixedSplits");
  args.end();

  args.require(q);
  args.require(o);
  args.expect(params.soft_cap >= 0, "softCap must be at least 0");
  const bool only_causal =
      params.window > 0 || params.sink_tokens > 0 || params.prefix_len > 0 || prefix_lens;
  if (!params.causal && only_causal) {
    throw BackendError("UNSUPPORTED",
                       "attention: causal: false excludes window, sinkTokens and prefixLen");
  }
  const int64_t rows = batch.view.total_q;
  const int64_t width = int64_t{heads.num_q_heads} * heads.head_dim;
  params.q = args.input_rows(q, rows, width, params.dtype);
  params.q_stride_token = q.stride;
  params.o = args.output(o, product(rows, width), dtype_bytes(params.dtype));
  params.lse = args.output<float>(lse, product(rows, heads.num_q_heads));
  params.sink_logits = args.input<float>(sink_logits, heads.num_q_heads);
  params.prefix_lens = args.input<int32_t>(prefix_lens, batch.view.batch_size);
  params.kv = place_kv(args, kv, batch, heads, params.dtype, false);
  params.batch = place_batch(args, batch, &kv);
  params.fault = args.backend().fault_word();
  args.check_overlap();
  return params;
}

}  // namespace

Napi::Value attention(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "attention");
  const AttentionParams params = read_attention(args);
  if (params.batch.total_q > 0) {
    with_workspace(args, args.backend().attention_workspace(params),
                   [&](void* workspace) { args.backend().attention(params, workspace); });
  }
  return environment.env().Undefined();
}

Napi::Value explain_attention(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "attention");
  const AttentionParams params = read_attention(args);
  return Napi::String::New(environment.env(), args.backend().explain(params));
}

Napi::Value rope_rows(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "ropeRows");
  const Ref inv_freq = args.ref("invFreq");
  const Ref long_inv_freq = args.ref("longInvFreq");
  RopeRowsParams params{};
  RopeParams& rope = params.rope;
  rope.base = args.f64("base");
  rope.dynamic_factor = args.f64("dynamicFactor");
  rope.attention_factor = args.f64("attentionFactor");
  rope.long_attention_factor = args.f64("longAttentionFactor");
  rope.half = args.i32("half", 1, kMaxHeadDim / 2);
  rope.original_max = args.i32("originalMax");
  const Ref positions = args.ref("positions");
  params.seq_len = args.i32("seqLen");
  const BatchRefs batch = read_batch(args);
  params.max_kv_len = args.i32("maxKvLen");
  params.rows = args.i32("rows");
  const Ref cos_sin = args.ref("cosSin");
  args.end();

  args.require(inv_freq);
  args.require(cos_sin);
  rope.inv_freq = args.input<double>(inv_freq, rope.half);
  rope.long_inv_freq = args.input<double>(long_inv_freq, rope.half);
  params.positions = args.input<int32_t>(positions, params.rows);
  if (!positions) {
    args.expect(batch.view.total_q == params.rows, "rows must equal the batch's totalQ");
    params.batch = place_batch(args, batch, nullptr);
  }
  params.cos_sin = args.output<float>(cos_sin, product(params.rows, 2, rope.half));
  params.fault = args.backend().fault_word();
  args.check_overlap();
  if (params.rows > 0) args.backend().rope_rows(params);
  return environment.env().Undefined();
}

Napi::Value rope_apply(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "ropeApply");
  const RowsRef x = args.rows("x");
  const Ref out = args.ref("out");
  const Ref cos_sin = args.ref("cosSin");
  RopeApplyParams params{};
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.num_heads = args.i32("numHeads", 1);
  params.head_dim = args.i32("headDim", 1);
  params.half = args.i32("half", 1);
  params.interleaved = args.flag("interleaved");
  args.end();

  args.require(x);
  args.require(out);
  args.require(cos_sin);
  args.expect(params.half <= params.head_dim / 2, "2 * half must not exceed headDim");
  const int64_t width = product(params.num_heads, params.head_dim);
  params.x = args.input_rows(x, params.rows, width, params.dtype);
  params.x_stride_token = x.stride;
  params.out = args.output(out, product(params.rows, width), dtype_bytes(params.dtype));
  params.cos_sin = args.input<float>(cos_sin, product(params.rows, 2, params.half));
  args.check_overlap(params.out, {params.x});
  if (params.rows > 0) args.backend().rope_apply(params);
  return environment.env().Undefined();
}

Napi::Value append_kv(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "appendKv");
  const RowsRef q = args.rows("q");
  const Ref q_out = args.ref("qOut");
  const RowsRef k = args.rows("k");
  const RowsRef v = args.rows("v");
  const Ref cos_sin = args.ref("cosSin");
  const KvRefs kv = read_kv(args);
  const BatchRefs batch = read_batch(args);
  AppendKvParams params{};
  params.dtype = args.float_dtype();
  const HeadShape heads = read_heads(args);
  params.num_q_heads = heads.num_q_heads;
  params.num_kv_heads = heads.num_kv_heads;
  params.head_dim = heads.head_dim;
  params.half = args.i32("half", 0, kMaxHeadDim / 2);
  params.interleaved = args.flag("interleaved");
  args.end();

  args.require(k);
  args.require(v);
  args.expect(static_cast<bool>(q) == static_cast<bool>(q_out), "q and qOut go together");
  if (cos_sin) {
    args.expect(params.half >= 1 && params.half <= heads.head_dim / 2,
                "half must be from 1 to headDim / 2");
  }
  const int64_t rows = batch.view.total_q;
  const int64_t q_width = int64_t{heads.num_q_heads} * heads.head_dim;
  const int64_t kv_width = int64_t{heads.num_kv_heads} * heads.head_dim;
  params.q = args.input_rows(q, rows, q_width, params.dtype);
  params.q_stride_token = q.stride;
  params.q_out = args.output(q_out, product(rows, q_width), dtype_bytes(params.dtype));
  params.k = args.input_rows(k, rows, kv_width, params.dtype);
  params.k_stride_token = k.stride;
  params.v = args.input_rows(v, rows, kv_width, params.dtype);
  params.v_stride_token = v.stride;
  params.cos_sin = args.input<float>(cos_sin, product(rows, 2, params.half));
  params.kv = place_kv(args, kv, batch, heads, params.dtype, true);
  params.pages = const_cast<void*>(params.kv.k);  // placed as an output
  params.batch = place_batch(args, batch, &kv);
  params.fault = args.backend().fault_word();
  args.check_overlap();
  if (rows > 0) args.backend().append_kv(params);
  return environment.env().Undefined();
}

}  // namespace flash_gqa::binding
