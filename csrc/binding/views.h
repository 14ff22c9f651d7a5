// BatchView and KvView of cuda/params.h, as attention, appendKv and ropeRows read them.
#pragma once

#include "args.h"

namespace flash_gqa::binding {

struct BatchRefs {
  BatchView view;  // numbers only
  Ref cu_seqlens_q;
  Ref cu_seqlens_k;
  Ref kv_lens;
};

struct KvRefs {
  KvView view;  // numbers only
  RowsRef k;
  RowsRef v;
  Ref page_table;
  Ref table_row;

  bool paged() const { return static_cast<bool>(page_table); }
};

struct HeadShape {
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
};

BatchRefs read_batch(Args& args);
KvRefs read_kv(Args& args);
HeadShape read_heads(Args& args);

// The views with checked addresses. `kv` decides where lengths of keys come from; null: only q rows
// are used. With `write_pages` the pages are the operation's output.
BatchView place_batch(Args& args, const BatchRefs& refs, const KvRefs* kv);
KvView place_kv(Args& args, const KvRefs& refs, const BatchRefs& batch, const HeadShape& heads,
                DType dtype, bool write_pages);

}  // namespace flash_gqa::binding
