// Random attention programs and their float64 answer, written from the conventions in prose alone:
// nothing of mask.h, softmax.h or kv_source.h is used here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "../../cuda/params.h"

namespace flash_gqa::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  int range(int low, int high) { return low + static_cast<int>(next() % (high - low + 1)); }
  bool chance(int percent) { return range(1, 100) <= percent; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  float normal() {
    return static_cast<float>(std::sqrt(-2.0 * std::log(1.0 - uniform())) *
                              std::cos(6.283185307179586 * uniform()));
  }
  template <class T>
  T pick(const std::vector<T>& values) {
    return values[next() % values.size()];
  }

 private:
  uint64_t state_;
};

struct Program {
  DType dtype;
  int num_kv_heads;
  int group_size;
  int head_dim;
  std::vector<int> q_lens;
  std::vector<int> kv_lens;
  std::vector<int> prefix_lens;  // empty: prefix_len for all
  std::vector<float> sink_logits;
  int prefix_len = 0;
  bool causal = true;
  int window = 0;
  int sink_tokens = 0;
  float sm_scale;
  float soft_cap = 0;
  int fixed_split = 0;
  bool paged = false;
  int page_size = 16;
  int bad_page = -1;  // paged: this page of sequence 0 has an invalid id
  int num_sms;
  uint64_t data_seed;

  int num_q_heads() const { return num_kv_heads * group_size; }
  int batch_size() const { return static_cast<int>(q_lens.size()); }
  int prefix(int b) const { return prefix_lens.empty() ? prefix_len : prefix_lens[b]; }
  bool uniform() const {
    for (int b = 1; b < batch_size(); ++b)
      if (q_lens[b] != q_lens[0] || kv_lens[b] != kv_lens[0]) return false;
    return true;
  }
  std::string describe() const {
    const char* names[] = {"f32", "f16", "bf16"};
    char part[256];
    std::snprintf(part, sizeof part, "%s kv_heads %d group %d d %d", names[static_cast<int>(dtype)],
                  num_kv_heads, group_size, head_dim);
    std::string text = part;
    for (int b = 0; b < batch_size(); ++b) {
      std::snprintf(part, sizeof part, " %d/%d", q_lens[b], kv_lens[b]);
      text += part;
    }
    std::snprintf(
        part, sizeof part,
        " %s window %d sink_tokens %d prefix %d%s cap %g split %d%s %s %d bad_page %d sms %d",
        causal ? "causal" : "full", window, sink_tokens, prefix_len,
        prefix_lens.empty() ? "" : " (own)", soft_cap, fixed_split,
        sink_logits.empty() ? "" : " sink_logits", paged ? "pages of" : "dense", page_size,
        bad_page, num_sms);
    text += part;
    return text;
  }
};

// Some queries against many keys, for which a kernel that gives its blocks rows divides keys too.
inline void make_long(Program& p, Random& random) {
  p.dtype = random.chance(50) ? DType::kFloat16 : DType::kBFloat16;
  p.num_kv_heads = random.range(1, 2);
  p.group_size = random.pick<int>({1, 2, 3, 4});
  if (random.chance(70)) p.fixed_split = 0;
  p.num_sms = random.pick<int>({2, 5, 7, 11, 20});
  p.sink_logits.resize(p.sink_logits.empty() ? 0 : p.num_q_heads(), 0.5f);
  const bool uniform = random.chance(50);
  for (int b = 0; b < p.batch_size(); ++b) {
    const bool same = uniform && b > 0;
    p.q_lens[b] = same                ? p.q_lens[0]
                  : random.chance(80) ? random.range(65, 200)
                                      : random.range(0, 64);
    p.kv_lens[b] = same                ? p.kv_lens[0]
                   : random.chance(80) ? random.range(1500, 4000) / p.batch_size()
                                       : random.range(0, 100);
  }
  if (p.bad_page >= 0) p.bad_page = std::min(p.bad_page, (p.kv_lens[0] - 1) / p.page_size);
}

// So many sequences that a decode launch guesses their lengths with several warps, or (above 128) not at all.
inline void make_many(Program& p, Random& random) {
  const int batch = random.pick<int>({33, 64, 100, 128, 129, 140});
  p.fixed_split = 0;
  p.prefix_lens.clear();
  p.q_lens.assign(batch, 1);
  p.kv_lens.assign(batch, random.range(1, 60));
  if (random.chance(70))
    for (int b = 0; b < batch; ++b) {
      p.q_lens[b] = random.chance(80) ? 1 : random.range(0, 4);
      p.kv_lens[b] = random.chance(90) ? random.range(0, 60) : random.range(200, 700);
    }
  if (p.bad_page >= 0) p.bad_page = p.kv_lens[0] > 0 ? 0 : -1;
}

// Groups of which a tile holds one token, or not even that.
inline void make_many_heads(Program& p, Random& random) {
  p.num_kv_heads = 1;
  p.group_size = random.pick<int>({33, 65, 71, 128});
  p.sink_logits.resize(p.sink_logits.empty() ? 0 : p.num_q_heads(), 0.5f);
  for (int b = 0; b < p.batch_size(); ++b) {
    p.q_lens[b] = std::min(p.q_lens[b], 12);
    p.kv_lens[b] = std::min(p.kv_lens[b], 300);
  }
  if (p.bad_page >= 0) p.bad_page = std::min(p.bad_page, (p.kv_lens[0] - 1) / p.page_size);
}

// Single queries against shares so long, of sequences that so few blocks share, that blocks which are done
// stay for the others (cuda/decode/linger.cuh).
inline void make_lingering(Program& p, Random& random) {
  p.dtype = random.chance(50) ? DType::kFloat16 : DType::kBFloat16;
  p.num_kv_heads = random.range(1, 2);
  p.group_size = random.pick<int>({1, 2, 4, 16});
  p.sink_logits.resize(p.sink_logits.empty() ? 0 : p.num_q_heads(), 0.5f);
  p.fixed_split = 0;
  p.prefix_lens.clear();
  if (random.chance(70)) p.window = 0;
  // So that one block on each multiprocessor keeps up with the memory.
  p.head_dim = random.pick<int>({128, 128, 192});
  p.num_sms = random.pick<int>({4, 6, 8, 12});
  const int teams = p.num_sms / p.num_kv_heads;
  const int batch = random.range(teams / 8 + 1, teams);
  const int keys = random.range(800, 1200) * teams / batch;
  const bool alike = random.chance(50);
  p.q_lens.assign(batch, 1);
  p.kv_lens.assign(batch, keys);
  for (int b = 0; b < batch && !alike; ++b)
    p.kv_lens[b] = random.chance(80) ? random.range(keys / 2, 3 * keys / 2) : random.range(0, 100);
  if (p.bad_page >= 0) p.bad_page = p.kv_lens[0] > 0 ? 0 : -1;
}

// More sequences than teams of blocks that each have a multiprocessor to themselves, and so long that, where keys
// are dense, a block plays two teams (plan_decode() in cuda/attention.cu): where one keeps up with the memory, as on
// an H100.
inline void make_two_teams(Program& p, Random& random) {
  p.dtype = random.chance(50) ? DType::kFloat16 : DType::kBFloat16;
  p.num_kv_heads = 1;
  p.group_size = random.pick<int>({1, 4, 8, 12, 16});
  p.sink_logits.resize(p.sink_logits.empty() ? 0 : p.num_q_heads(), 0.5f);
  p.fixed_split = 0;
  p.prefix_lens.clear();
  if (random.chance(70)) p.window = 0;
  p.head_dim = 128;
  p.num_sms = random.range(1, 4);
  const int batch = random.range(p.num_sms + 1, 2 * p.num_sms + 3);
  const int keys = random.range(6500, 7000);
  const bool alike = random.chance(40);
  p.q_lens.assign(batch, 1);
  p.kv_lens.assign(batch, keys);
  for (int b = 0; b + 1 < batch && !alike; b += 2) {
    const int more = random.range(0, keys);
    p.kv_lens[b] += more;
    p.kv_lens[b + 1] -= more;
  }
  if (p.bad_page >= 0) p.bad_page = 0;
}

inline Program random_program(Random& random) {
  Program p;
  p.dtype = static_cast<DType>(random.range(0, 2));
  p.num_kv_heads = random.range(1, 3);
  p.group_size = random.pick<int>({1, 1, 2, 3, 4, 5, 7, 8, 12, 16, 20});
  p.head_dim =
      random.pick<int>({64, 64, 96, 128, 128, 128, 192, 256, 8, 40, 72, 80, 112, 160, 200, 248});
  const int batch = random.pick<int>({1, 1, 2, 3, 5});
  const auto q_len = [&] {
    switch (random.range(0, 5)) {
      case 0:
      case 1:
        return 1;
      case 2:
        return random.range(2, 9);
      case 3:
        return random.range(10, 40);
      case 4:
        return random.pick<int>({37, 64, 65, 97, 113});
      default:
        return random.chance(50) ? 0 : random.range(100, 200);
    }
  };
  const auto kv_len = [&](int q) {
    switch (random.range(0, 5)) {
      case 0:
        return q;
      case 1:
        return q + random.range(0, 70);
      case 2:
        return random.range(0, 40);  // may be shorter than q: the first rows see nothing
      case 3:
        return q + random.pick<int>({1, 63, 64, 65, 127, 128, 129, 576});
      default:
        return q + random.range(100, 700);
    }
  };
  const bool uniform = random.chance(35);
  for (int b = 0; b < batch; ++b) {
    p.q_lens.push_back(uniform && b > 0 ? p.q_lens[0] : q_len());
    p.kv_lens.push_back(uniform && b > 0 ? p.kv_lens[0] : kv_len(p.q_lens[b]));
  }
  p.causal = random.chance(85);
  if (p.causal) {
    if (random.chance(50))
      p.window = random.pick<int>({1, 2, 7, 16, 17, 63, 64, 65, 100, 300, 100000, 0x7fffffff});
    if (random.chance(40)) p.sink_tokens = random.pick<int>({1, 4, 20, 70, 2000});
    if (random.chance(25)) p.prefix_len = random.pick<int>({3, 40, 100, 1000});
    if (random.chance(15))
      for (int b = 0; b < batch; ++b) p.prefix_lens.push_back(random.range(0, 150));
  }
  p.sm_scale = random.chance(80) ? 1.0f / std::sqrt(static_cast<float>(p.head_dim)) : 0.31f;
  if (random.chance(25)) p.soft_cap = random.pick<float>({1.5f, 30.0f, 50.0f});
  if (random.chance(30)) p.fixed_split = random.pick<int>({32, 64, 100, 128, 256});
  if (random.chance(30))
    for (int h = 0; h < p.num_q_heads(); ++h) p.sink_logits.push_back(2.0f * random.normal());
  p.paged = random.chance(60);
  p.page_size = random.pick<int>({1, 2, 4, 8, 16, 32, 64, 128});
  if (p.paged && random.chance(8) && p.kv_lens[0] > 0)
    p.bad_page = random.range(0, (p.kv_lens[0] - 1) / p.page_size);
  p.num_sms = random.pick<int>({1, 20, 100, 132});
  p.data_seed = random.next();
  if (random.chance(15)) {
    make_long(p, random);
  } else if (random.chance(6)) {
    make_many(p, random);
  } else if (random.chance(6)) {
    make_many_heads(p, random);
  } else if (random.chance(6)) {
    make_lingering(p, random);
  } else if (random.chance(5)) {
    make_two_teams(p, random);
  }
  return p;
}

// The visibility rule of the conventions, for one (position, key).
inline bool sees(const Program& p, int b, int position, int key) {
  if (p.bad_page >= 0 && b == 0 && key / p.page_size == p.bad_page) return false;
  if (!p.causal) return true;
  const bool causal = key <= position || key < p.prefix(b);
  const bool near = p.window == 0 || key > static_cast<int64_t>(position) - p.window;
  return causal && (near || key < p.sink_tokens);
}

struct Values {          // already rounded to the dtype
  std::vector<float> q;  // [total_q, num_q_heads, head_dim]
  std::vector<float> k;  // [total_kv, num_kv_heads, head_dim]
  std::vector<float> v;  // as k
};

struct Answer {
  std::vector<double> o;    // [total_q, num_q_heads, head_dim]
  std::vector<double> lse;  // [total_q, num_q_heads]
};

inline void reference_row(const Program& p, const Values& x, int b, int kv_start, int position,
                          int64_t q_row, int head, Answer& out) {
  const int d = p.head_dim, kv_heads = p.num_kv_heads;
  const float* q = &x.q[(q_row * p.num_q_heads() + head) * d];
  double top =
      p.sink_logits.empty() ? -std::numeric_limits<double>::infinity() : p.sink_logits[head];
  std::vector<double> logits(p.kv_lens[b], -std::numeric_limits<double>::infinity());
  for (int j = 0; j < p.kv_lens[b]; ++j) {
    if (!sees(p, b, position, j)) continue;
    const float* k =
        &x.k[(static_cast<int64_t>(kv_start + j) * kv_heads + head / p.group_size) * d];
    double s = 0;
    for (int i = 0; i < d; ++i) s += static_cast<double>(q[i]) * k[i];
    s *= p.sm_scale;
    if (p.soft_cap > 0) s = p.soft_cap * std::tanh(s / p.soft_cap);
    logits[j] = s;
    top = std::fmax(top, s);
  }
  double* o = &out.o[(q_row * p.num_q_heads() + head) * d];
  double& lse = out.lse[q_row * p.num_q_heads() + head];
  lse = -std::numeric_limits<double>::infinity();
  if (std::isinf(top)) return;
  double sum = p.sink_logits.empty() ? 0 : std::exp(p.sink_logits[head] - top);
  for (double s : logits) sum += std::exp(s - top);
  for (int j = 0; j < p.kv_lens[b]; ++j) {
    if (std::isinf(logits[j])) continue;
    const double weight = std::exp(logits[j] - top) / sum;
    const float* v =
        &x.v[(static_cast<int64_t>(kv_start + j) * kv_heads + head / p.group_size) * d];
    for (int i = 0; i < d; ++i) o[i] += weight * v[i];
  }
  lse = top + std::log(sum);
}

inline Answer reference(const Program& p, const Values& x) {
  int64_t total_q = 0;
  for (int n : p.q_lens) total_q += n;
  Answer out;
  out.o.assign(total_q * p.num_q_heads() * p.head_dim, 0.0);
  out.lse.assign(total_q * p.num_q_heads(), 0.0);
  int64_t q_start = 0;
  int kv_start = 0;
  for (int b = 0; b < p.batch_size(); ++b) {
    for (int i = 0; i < p.q_lens[b]; ++i)
      for (int head = 0; head < p.num_q_heads(); ++head)
        reference_row(p, x, b, kv_start, p.kv_lens[b] - p.q_lens[b] + i, q_start + i, head, out);
    q_start += p.q_lens[b];
    kv_start += p.kv_lens[b];
  }
  return out;
}

}  // namespace flash_gqa::test
