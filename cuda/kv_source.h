// The only place that knows how a sequence and its key rows are found: dense or paged, ragged or
// uniform. Everything read from the device here is checked: lengths are clamped and page ids
// masked, and the offender is reported through the fault word. Compiles with plain g++ and clang.
#pragma once

#include "params.h"

namespace flash_gqa {

GQA_HOST_DEVICE void set_fault(int32_t* fault, Fault code) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<volatile int32_t*>(fault) = code;
#else
  __atomic_store_n(fault, static_cast<int32_t>(code), __ATOMIC_RELAXED);
#endif
}

GQA_HOST_DEVICE int32_t clamp_reported(int32_t value, int32_t low, int32_t high, Fault code,
                                       int32_t* fault) {
  if (value >= low && value <= high) return value;
  set_fault(fault, code);
  return value < low ? low : high;
}

// Of a power of two.
GQA_HOST_DEVICE int32_t log2_of(int32_t power) {
#if defined(__CUDA_ARCH__)
  return __ffs(power) - 1;
#else
  return __builtin_ctz(static_cast<uint32_t>(power));
#endif
}

struct Sequence {
  int32_t q_start;  // first packed query row
  int32_t q_len;
  int32_t kv_start;  // dense: first packed key row
  int32_t kv_len;
  int32_t table_row;  // paged
};

struct PlainRead {
  GQA_HOST_DEVICE int32_t operator()(const int32_t* word) const { return *word; }
};

// What is read from device memory to know one sequence, unchecked.
struct SequenceWords {
  int32_t q_start;
  int32_t q_end;
  int32_t k_start;
  int32_t k_end;
  int32_t kv_len;
  int32_t table_row;

  GQA_HOST_DEVICE bool operator==(const SequenceWords& w) const {
    return q_start == w.q_start && q_end == w.q_end && k_start == w.k_start && k_end == w.k_end &&
           kv_len == w.kv_len && table_row == w.table_row;
  }
};

template <class Read = PlainRead>
GQA_HOST_DEVICE SequenceWords read_sequence_words(const BatchView& batch, const KvView& kv,
                                                  int32_t b, const Read& read = {}) {
  const bool paged = kv.page_table != nullptr;
  const bool ragged_q = batch.cu_seqlens_q != nullptr;
  const bool ragged_k = !paged && batch.cu_seqlens_k != nullptr;
  SequenceWords w;
  w.q_start = ragged_q ? read(batch.cu_seqlens_q + b) : b * batch.uniform_q_len;
  w.q_end = ragged_q ? read(batch.cu_seqlens_q + b + 1) : w.q_start + batch.uniform_q_len;
  w.k_start = ragged_k ? read(batch.cu_seqlens_k + b) : b * batch.uniform_kv_len;
  w.k_end = ragged_k ? read(batch.cu_seqlens_k + b + 1) : w.k_start + batch.uniform_kv_len;
  w.kv_len = paged && batch.kv_lens != nullptr ? read(batch.kv_lens + b) : batch.uniform_kv_len;
  w.table_row = paged && kv.table_row != nullptr ? read(kv.table_row + b) : b;
  return w;
}

// Lengths are clamped to the buffers they index.
GQA_HOST_DEVICE Sequence checked_sequence(const BatchView& batch, const KvView& kv, int32_t b,
                                          const SequenceWords& words, int32_t* fault) {
  const bool paged = kv.page_table != nullptr;
  const bool ragged_q = batch.cu_seqlens_q != nullptr;
  const bool ragged_k = !paged && batch.cu_seqlens_k != nullptr;
  Sequence s{};
  s.q_start = words.q_start;
  s.q_len = batch.uniform_q_len;
  if (ragged_q) {
    s.q_start = clamp_reported(words.q_start, 0, batch.total_q, kFaultOffsets, fault);
    const int32_t end = clamp_reported(words.q_end, s.q_start, batch.total_q, kFaultOffsets, fault);
    // The grid covers max_q_len rows of each sequence; a longer one would silently lose rows.
    s.q_len = clamp_reported(end - s.q_start, 0, batch.max_q_len, kFaultLength, fault);
  }
  if (paged) {
    s.table_row = kv.table_row == nullptr ? b
                                          : clamp_reported(words.table_row, 0, kv.table_rows - 1,
                                                           kFaultTableRow, fault);
    const int64_t slots = static_cast<int64_t>(kv.max_pages) * kv.page_size;
    const int32_t capacity = slots < 0x7fffffff ? static_cast<int32_t>(slots) : 0x7fffffff;
    s.kv_len = clamp_reported(words.kv_len, 0, capacity, kFaultLength, fault);
  } else if (ragged_k) {
    s.kv_start = clamp_reported(words.k_start, 0, kv.total_kv, kFaultOffsets, fault);
    const int32_t end = clamp_reported(words.k_end, s.kv_start, kv.total_kv, kFaultOffsets, fault);
    s.kv_len = end - s.kv_start;
  } else {
    s.kv_start = words.k_start;
    s.kv_len = batch.uniform_kv_len;
  }
  return s;
}

// Sequence b of the batch. All of its words are read before the first is looked at: their latencies
// overlap.
GQA_HOST_DEVICE Sequence read_sequence(const BatchView& batch, const KvView& kv, int32_t b,
                                       int32_t* fault) {
  return checked_sequence(batch, kv, b, read_sequence_words(batch, kv, b), fault);
}

// The sequence that packed query row `row` can belong to, or -1. Offsets are not trusted: the
// caller still asks read_sequence() whether the row lies in it.
GQA_HOST_DEVICE int32_t sequence_of_row(const BatchView& batch, int32_t row) {
  if (batch.cu_seqlens_q == nullptr) {
    const int32_t b = batch.uniform_q_len > 0 ? row / batch.uniform_q_len : batch.batch_size;
    return b < batch.batch_size ? b : -1;
  }
  int32_t first = 0;  // the last sequence that starts at or before row: empty ones come before it
  int32_t end = batch.batch_size;
  while (end - first > 1) {
    const int32_t middle = first + (end - first) / 2;
    if (batch.cu_seqlens_q[middle] <= row) {
      first = middle;
    } else {
      end = middle;
    }
  }
  return batch.batch_size > 0 ? first : -1;
}

// Where one key lies: element offsets as k_offset() and v_offset() give them.
struct KeyRow {
  int64_t k;
  int64_t v;
};

// Finds key rows of one sequence and one KV head. Offsets count elements from kv.k (keys) and,
// dense, from kv.v (values).
struct KvSource {
  const int32_t* pages;  // this sequence's table row, or null: dense
  int64_t k_base;        // dense: element offset of (kv_start, kv_head)
  int64_t v_base;
  int64_t head_offset;  // paged: element offset of kv_head inside a page
  int64_t v_in_page;    // paged: element offset from a page's keys to its values
  int64_t k_stride_token;
  int64_t v_stride_token;
  int64_t stride_page;
  int32_t page_shift;  // log2(page_size)
  int32_t page_mask;   // page_size - 1
  int32_t num_pages;
  int32_t* fault;

  GQA_HOST_DEVICE KvSource(const KvView& kv, const Sequence& s, int32_t num_kv_heads,
                           int32_t kv_head, int32_t head_dim, int32_t* fault_word)
      : pages(nullptr),
        k_base(0),
        v_base(0),
        head_offset(0),
        v_in_page(0),
        k_stride_token(kv.k_stride_token),
        v_stride_token(kv.v_stride_token),
        stride_page(kv.stride_page),
        page_shift(0),
        page_mask(0),
        num_pages(kv.num_pages),
        fault(fault_word) {
    if (kv.page_table != nullptr) {
      pages = kv.page_table + static_cast<int64_t>(s.table_row) * kv.max_pages;
      page_shift = log2_of(kv.page_size);
      page_mask = kv.page_size - 1;
      k_stride_token = head_dim;
      v_stride_token = head_dim;
      head_offset = static_cast<int64_t>(kv_head) * kv.page_size * head_dim;
      v_in_page = static_cast<int64_t>(num_kv_heads) * kv.page_size * head_dim;
    } else {
      k_base = s.kv_start * kv.k_stride_token + static_cast<int64_t>(kv_head) * head_dim;
      v_base = s.kv_start * kv.v_stride_token + static_cast<int64_t>(kv_head) * head_dim;
    }
  }

  GQA_HOST_DEVICE bool paged() const { return pages != nullptr; }

  // The checked page id behind key `key` < kv_len, or -1 (reported): such keys must be treated as
  // masked.
  template <class Read = PlainRead>
  GQA_HOST_DEVICE int32_t page_of(int32_t key, const Read& read = {}) const {
    return checked_page(page_entry(key, read));
  }
  // In two steps, for who has something to do until the entry is there.
  template <class Read = PlainRead>
  GQA_HOST_DEVICE int32_t page_entry(int32_t key, const Read& read = {}) const {
    return read(pages + (key >> page_shift));
  }
  GQA_HOST_DEVICE int32_t checked_page(int32_t page) const {
    if (page >= 0 && page < num_pages) return page;
    set_fault(fault, kFaultPageId);
    return -1;
  }

  // Element offset of the key row (from kv.k), or -1 where its page id is invalid. The caller keeps
  // 0 <= key < kv_len.
  GQA_HOST_DEVICE int64_t k_offset(int32_t key) const {
    if (!paged()) return k_base + key * k_stride_token;
    const int32_t page = page_of(key);
    if (page < 0) return -1;
    return page * stride_page + head_offset +
           static_cast<int64_t>(key & page_mask) * k_stride_token;
  }

  // Both rows of a key behind one page lookup; k < 0 where the page id is invalid.
  GQA_HOST_DEVICE KeyRow row(int32_t key) const {
    if (!paged()) return {k_base + key * k_stride_token, v_base + key * v_stride_token};
    const int64_t k = k_offset(key);
    return {k, k + v_in_page};
  }

  // Element offset of the value row: from kv.v (dense) or from kv.k (paged).
  GQA_HOST_DEVICE int64_t v_offset(int32_t key) const {
    if (!paged()) return v_base + key * v_stride_token;
    const int64_t k = k_offset(key);
    return k < 0 ? -1 : k + v_in_page;
  }
};

}  // namespace flash_gqa
