#include "views.h"

#include <bit>

namespace flash_gqa::binding {

BatchRefs read_batch(Args& args) {
  BatchRefs refs{};
  refs.view.batch_size = args.i32("batchSize");
  refs.view.total_q = args.i32("totalQ");
  refs.view.max_q_len = args.i32("maxQLen");
  refs.view.max_kv_len = args.i32("maxKvLen");
  refs.view.uniform_q_len = args.i32("uniformQLen");
  refs.view.uniform_kv_len = args.i32("uniformKvLen");
  refs.cu_seqlens_q = args.ref("cuSeqlensQ");
  refs.cu_seqlens_k = args.ref("cuSeqlensK");
  refs.kv_lens = args.ref("kvLens");
  return refs;
}

KvRefs read_kv(Args& args) {
  KvRefs refs{};
  refs.k = args.rows("k");
  refs.v = args.rows("v");
  refs.view.stride_page = args.i64("stridePage");
  refs.view.total_kv = args.i32("totalKv");
  refs.view.page_size = args.i32("pageSize");
  refs.view.num_pages = args.i32("numPages");
  refs.view.max_pages = args.i32("maxPages");
  refs.view.table_rows = args.i32("tableRows");
  refs.page_table = args.ref("pageTable");
  refs.table_row = args.ref("tableRows");
  return refs;
}

HeadShape read_heads(Args& args) {
  HeadShape heads{};
  heads.num_q_heads = args.i32("numQHeads", 1);
  heads.num_kv_heads = args.i32("numKvHeads", 1);
  heads.head_dim = args.i32("headDim", 8, kMaxHeadDim);
  args.expect(heads.num_q_heads % heads.num_kv_heads == 0,
              "numQHeads must be a multiple of numKvHeads");
  args.expect(heads.head_dim % 8 == 0, "headDim must be a multiple of 8");
  return heads;
}

BatchView place_batch(Args& args, const BatchRefs& refs, const KvRefs* kv) {
  BatchView view = refs.view;
  const int64_t batch_size = view.batch_size;
  view.cu_seqlens_q = args.input<int32_t>(refs.cu_seqlens_q, batch_size + 1);
  if (!refs.cu_seqlens_q) {
    args.expect(batch_size * view.uniform_q_len == view.total_q,
                "totalQ must be batchSize * uniformQLen where there is no cuSeqlensQ");
    args.expect(view.uniform_q_len <= view.max_q_len, "uniformQLen must not exceed maxQLen");
  }
  if (kv != nullptr && !kv->paged()) {
    args.expect(!refs.kv_lens, "kvLens belongs to paged keys; give cuSeqlensK for dense ones");
    view.cu_seqlens_k = args.input<int32_t>(refs.cu_seqlens_k, batch_size + 1);
    if (!refs.cu_seqlens_k) {
      args.expect(batch_size * view.uniform_kv_len <= kv->view.total_kv,
                  "batchSize * uniformKvLen must not exceed totalKv");
    }
  } else {
    args.expect(!refs.cu_seqlens_k, "cuSeqlensK belongs to dense keys; give kvLens for paged ones");
    view.kv_lens = args.input<int32_t>(refs.kv_lens, batch_size);
  }
  return view;
}

KvView place_kv(Args& args, const KvRefs& refs, const BatchRefs& batch, const HeadShape& heads,
                DType dtype, bool write_pages) {
  KvView view = refs.view;
  args.require(refs.k);
  const int64_t width = int64_t{heads.num_kv_heads} * heads.head_dim;
  if (!refs.paged()) {
    args.expect(!write_pages, "pageTable is missing");
    args.require(refs.v);
    args.expect(!refs.table_row, "tableRows needs a pageTable");
    view.k = args.input_rows(refs.k, view.total_kv, width, dtype);
    view.v = args.input_rows(refs.v, view.total_kv, width, dtype);
    view.k_stride_token = refs.k.stride;
    view.v_stride_token = refs.v.stride;
    return view;
  }
  args.expect(!refs.v, "v must be null for paged keys: it lies behind k in each page");
  args.expect(view.page_size >= 1 && view.page_size <= 1024 &&
                  std::has_single_bit(static_cast<uint32_t>(view.page_size)),
              "pageSize must be a power of two from 1 to 1024");
  const int64_t page = product(2 * width, view.page_size);
  args.expect(view.stride_page >= page,
              "stridePage must be at least 2 * numKvHeads * pageSize * headDim");
  int64_t elements = 0;
  if (view.num_pages > 0 &&
      __builtin_add_overflow(product(view.num_pages - 1, view.stride_page), page, &elements)) {
    elements = INT64_MAX;
  }
  view.k = write_pages ? args.output(refs.k, elements, dtype_bytes(dtype))
                       : args.input(refs.k, elements, dtype_bytes(dtype));
  view.page_table = args.input<int32_t>(refs.page_table, product(view.table_rows, view.max_pages));
  view.table_row = args.input<int32_t>(refs.table_row, batch.view.batch_size);
  if (!refs.table_row) {
    args.expect(batch.view.batch_size <= view.table_rows,
                "pageTable has fewer rows than the batch: give tableRows");
  } else {
    args.expect(view.table_rows >= 1, "pageTable has no rows");
  }
  return view;
}

}  // namespace flash_gqa::binding
