// The operations of nn_params.h.
#include <algorithm>

#include "args.h"
#include "functions.h"

namespace flash_gqa::binding {

Napi::Value embedding(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "embedding");
  const Ref table = args.ref("table");
  const Ref ids = args.ref("ids");
  const Ref out = args.ref("out");
  EmbeddingParams params{};
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.vocab_size = args.i32("vocabSize");
  params.width = args.i32("width", 1);
  args.end();

  args.require(table);
  args.require(ids);
  args.require(out);
  const size_t bytes = dtype_bytes(params.dtype);
  params.table = args.input(table, product(params.vocab_size, params.width), bytes);
  params.ids = args.input<int32_t>(ids, params.rows);
  params.out = args.output(out, product(params.rows, params.width), bytes);
  params.fault = args.backend().fault_word();
  args.check_overlap();
  if (params.rows > 0) args.backend().embedding(params);
  return environment.env().Undefined();
}

Napi::Value linear(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "linear");
  const RowsRef x = args.rows("x");
  const Ref weight = args.ref("weight");
  const Ref bias = args.ref("bias");
  const Ref residual = args.ref("residual");
  const Ref norm = args.ref("norm.weight");
  const Ref out = args.ref("out");
  LinearParams params{};
  params.dtype = args.float_dtype();
  params.out_dtype = args.float_dtype("outDtype");
  params.rows = args.i32("rows");
  params.in_features = args.i32("inFeatures", 1);
  params.out_features = args.i32("outFeatures", 1);
  params.norm_eps = args.f32("norm.eps");
  params.gated = args.flag("gated") != 0;
  args.end();

  args.require(x);
  args.require(weight);
  args.require(out);
  args.expect(params.out_dtype == params.dtype || params.out_dtype == DType::kFloat32,
              "outDtype expected dtype or float32");
  args.expect(params.norm_eps >= 0, "norm.eps must be at least 0");
  args.expect(!params.gated || (!bias && !residual && params.out_dtype == params.dtype),
              "gated takes neither bias nor residual nor outDtype");
  const size_t bytes = dtype_bytes(params.dtype);
  const int64_t elements = product(params.rows, params.out_features);
  params.x = args.input_rows(x, params.rows, params.in_features, params.dtype);
  params.x_stride_row = x.stride;
  const int32_t columns = params.gated ? 2 : 1;
  params.weight =
      args.input(weight, product(columns, params.out_features, params.in_features), bytes);
  params.bias = args.input(bias, params.out_features, bytes);
  params.residual = args.input(residual, elements, bytes);
  params.norm_weight = args.input(norm, params.in_features, bytes);
  params.out = args.output(out, elements, dtype_bytes(params.out_dtype));
  args.check_overlap(params.out, {params.residual});
  if (params.rows > 0) {
    with_workspace(args, args.backend().linear_workspace(params),
                   [&](void* workspace) { args.backend().linear(params, workspace); });
  }
  return environment.env().Undefined();
}

Napi::Value rms_norm(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "rmsNorm");
  const RowsRef x = args.rows("x");
  const Ref weight = args.ref("weight");
  const Ref out = args.ref("out");
  RmsNormParams params{};
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.num_groups = args.i32("numGroups", 1);
  params.width = args.i32("width", 1);
  params.eps = args.f32("eps");
  args.end();

  args.require(x);
  args.require(weight);
  args.require(out);
  args.expect(params.eps >= 0, "eps must be at least 0");
  const int64_t row = product(params.num_groups, params.width);
  params.x = args.input_rows(x, params.rows, row, params.dtype);
  params.x_stride_row = x.stride;
  params.weight = args.input(weight, params.width, dtype_bytes(params.dtype));
  params.out = args.output(out, product(params.rows, row), dtype_bytes(params.dtype));
  args.check_overlap(params.out, {params.x});
  if (params.rows > 0) args.backend().rms_norm(params);
  return environment.env().Undefined();
}

Napi::Value add(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "add");
  const Ref a = args.ref("a");
  const Ref b = args.ref("b");
  const Ref out = args.ref("out");
  AddParams params{};
  params.dtype = args.float_dtype();
  params.elements = args.i64("elements");
  args.end();

  args.require(a);
  args.require(b);
  args.require(out);
  params.a = args.input(a, params.elements, dtype_bytes(params.dtype));
  params.b = args.input(b, params.elements, dtype_bytes(params.dtype));
  params.out = args.output(out, params.elements, dtype_bytes(params.dtype));
  args.check_overlap(params.out, {params.a, params.b});
  if (params.elements > 0) args.backend().add(params);
  return environment.env().Undefined();
}

Napi::Value silu_mul(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "siluMul");
  const RowsRef gate = args.rows("gate");
  const RowsRef up = args.rows("up");
  const Ref out = args.ref("out");
  SiluMulParams params{};
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.width = args.i32("width", 1);
  args.end();

  args.require(gate);
  args.require(up);
  args.require(out);
  params.gate = args.input_rows(gate, params.rows, params.width, params.dtype);
  params.gate_stride_row = gate.stride;
  params.up = args.input_rows(up, params.rows, params.width, params.dtype);
  params.up_stride_row = up.stride;
  params.out = args.output(out, product(params.rows, params.width), dtype_bytes(params.dtype));
  args.check_overlap();
  if (params.rows > 0) args.backend().silu_mul(params);
  return environment.env().Undefined();
}

Napi::Value top_k(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "topK");
  const Ref logits = args.ref("logits");
  const Ref ids = args.ref("ids");
  const Ref log_probs = args.ref("logProbs");
  TopKParams params{};
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.vocab_size = args.i32("vocabSize", 1);
  params.k = args.i32("k", 1, std::min(kMaxTopK, params.vocab_size));
  args.end();

  args.require(logits);
  args.require(ids);
  args.require(log_probs);
  params.logits =
      args.input(logits, product(params.rows, params.vocab_size), dtype_bytes(params.dtype));
  params.ids = args.output<int32_t>(ids, product(params.rows, params.k));
  params.log_probs = args.output<float>(log_probs, product(params.rows, params.k));
  args.check_overlap();
  if (params.rows > 0) args.backend().top_k(params);
  return environment.env().Undefined();
}

Napi::Value sample(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "sample");
  const Ref logits = args.ref("logits");
  const Ref ids = args.ref("ids");
  const Ref log_probs = args.ref("logProbs");
  const Ref temperature = args.ref("temperature");
  const Ref top_k = args.ref("topK");
  const Ref top_p = args.ref("topP");
  const Ref seed = args.ref("seed");
  const Ref counter = args.ref("counter");
  SampleParams params{};
  params.dtype = args.float_dtype();
  params.rows = args.i32("rows");
  params.vocab_size = args.i32("vocabSize", 1);
  args.end();

  for (const Ref& ref : {logits, ids, temperature, top_k, top_p, seed, counter}) args.require(ref);
  const int64_t rows = params.rows;
  params.logits = args.input(logits, product(rows, params.vocab_size), dtype_bytes(params.dtype));
  params.ids = args.output<int32_t>(ids, rows);
  params.log_probs = args.output<float>(log_probs, rows);
  params.temperature = args.input<float>(temperature, rows);
  params.top_k = args.input<int32_t>(top_k, rows);
  params.top_p = args.input<float>(top_p, rows);
  params.seed = args.input<uint32_t>(seed, 2 * rows);
  params.counter = args.input<int32_t>(counter, rows);
  args.check_overlap();
  if (rows > 0) {
    with_workspace(args, args.backend().sample_workspace(params),
                   [&](void* workspace) { args.backend().sample(params, workspace); });
  }
  return environment.env().Undefined();
}

Napi::Value gather_rows(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "gatherRows");
  const RowsRef x = args.rows("x");
  const Ref index = args.ref("index");
  const Ref out = args.ref("out");
  GatherRowsParams params{};
  params.dtype = args.float_dtype();
  params.num_rows = args.i32("numRows");
  params.out_rows = args.i32("outRows");
  params.width = args.i32("width", 1);
  args.end();

  args.require(x);
  args.require(index);
  args.require(out);
  params.x = args.input_rows(x, params.num_rows, params.width, params.dtype);
  params.x_stride_row = x.stride;
  params.index = args.input<int32_t>(index, params.out_rows);
  params.out = args.output(out, product(params.out_rows, params.width), dtype_bytes(params.dtype));
  params.fault = args.backend().fault_word();
  args.check_overlap();
  if (params.out_rows > 0) args.backend().gather_rows(params);
  return environment.env().Undefined();
}

}  // namespace flash_gqa::binding
