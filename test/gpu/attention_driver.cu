// Checks the attention kernels against float64 on random programs, and times them. No framework:
// it runs where there is a GPU and a compiler, or this file's binary alone.
//
//   cmake -S test/gpu -B build/gpu -DCMAKE_CUDA_ARCHITECTURES=90a && cmake --build build/gpu -j 4
//   build/gpu/attention_driver                    400 programs, then timings
//   build/gpu/attention_driver check 1000 7       1000 programs from seed 7
//   build/gpu/attention_driver time
//   build/gpu/attention_driver resident           whether decode's blocks always find room
#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <string_view>
#include <thread>

#include "attention_timing.h"
#include "device_run.h"
#include "residency.h"

namespace flash_gqa::test {
namespace {

struct Tolerance {
  double absolute, relative, rms, lse;
};

// rms is relative to the answer's own; a correctly rounded 16-bit output alone has 2^-9 / sqrt(3).
Tolerance tolerance(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {2e-5, 2e-5, 3e-6, 2e-5};
    case DType::kFloat16:
      return {2e-3, 2e-3, 6e-4, 3e-4};
    default:
      return {1.5e-2, 1.5e-2, 4e-3, 3e-4};
  }
}

std::string compare(const Program& p, const Answer& want, const Outcome& got) {
  const Tolerance limit = tolerance(p.dtype);
  double error2 = 0, answer2 = 0, worst = 0;
  size_t worst_at = 0;
  for (size_t i = 0; i < want.o.size(); ++i) {
    const double x = got.o.get(static_cast<int64_t>(i));
    if (!std::isfinite(x)) return "o[" + std::to_string(i) + "] is not finite";
    const double error = std::fabs(x - want.o[i]);
    const double share = error / (limit.absolute + limit.relative * std::fabs(want.o[i]));
    if (share > worst) worst = share, worst_at = i;
    error2 += error * error;
    answer2 += want.o[i] * want.o[i];
  }
  if (worst > 1) {
    char text[160];
    std::snprintf(text, sizeof text, "o[%zu] (row %zu head %zu col %zu) is %g, expected %g",
                  worst_at, worst_at / (p.num_q_heads() * p.head_dim),
                  worst_at / p.head_dim % p.num_q_heads(), worst_at % p.head_dim,
                  static_cast<double>(got.o.get(static_cast<int64_t>(worst_at))), want.o[worst_at]);
    return text;
  }
  if (error2 > limit.rms * limit.rms * answer2)
    return "rms error " + std::to_string(std::sqrt(error2 / answer2)) + " of the answer's";
  for (size_t i = 0; i < want.lse.size(); ++i) {
    const bool same_infinity = std::isinf(want.lse[i]) && got.lse[i] == want.lse[i];
    const double error = std::fabs(got.lse[i] - want.lse[i]);
    if (!same_infinity && !(error <= limit.lse * std::fmax(1.0, std::fabs(want.lse[i]))))
      return "lse[" + std::to_string(i) + "] is " + std::to_string(got.lse[i]) + ", expected " +
             std::to_string(want.lse[i]);
  }
  return "";
}

bool same_bits(const Outcome& a, const Outcome& b) {
  return a.o.bytes == b.o.bytes && a.lse.size() == b.lse.size() &&
         std::equal(a.lse.begin(), a.lse.end(), b.lse.begin());
}

// Sequence b's rows of an outcome, to be compared with the sequence run alone.
Outcome rows_of(const Program& p, const Outcome& all, int b) {
  int64_t first = 0;
  for (int i = 0; i < b; ++i) first += p.q_lens[i];
  const int64_t row_bytes =
      static_cast<int64_t>(p.num_q_heads()) * p.head_dim * dtype_bytes(p.dtype);
  Outcome part = all;
  part.o.bytes.assign(all.o.bytes.begin() + first * row_bytes,
                      all.o.bytes.begin() + (first + p.q_lens[b]) * row_bytes);
  part.lse.assign(all.lse.begin() + first * p.num_q_heads(),
                  all.lse.begin() + (first + p.q_lens[b]) * p.num_q_heads());
  return part;
}

Program alone(const Program& p, int b) {
  Program one = p;
  one.q_lens = {p.q_lens[b]};
  one.kv_lens = {p.kv_lens[b]};
  if (!p.prefix_lens.empty()) one.prefix_lens = {p.prefix_lens[b]};
  if (b != 0) one.bad_page = -1;
  return one;
}

Values values_of(const Program& p, const Values& x, int b) {
  int64_t q = 0, kv = 0;
  for (int i = 0; i < b; ++i) q += p.q_lens[i], kv += p.kv_lens[i];
  const auto part = [](const std::vector<float>& from, int64_t first, int64_t rows, int64_t width) {
    return std::vector<float>(from.begin() + first * width, from.begin() + (first + rows) * width);
  };
  return {part(x.q, q, p.q_lens[b], p.num_q_heads() * p.head_dim),
          part(x.k, kv, p.kv_lens[b], p.num_kv_heads * p.head_dim),
          part(x.v, kv, p.kv_lens[b], p.num_kv_heads * p.head_dim)};
}

// An empty string, or what is wrong.
std::string check_program(const Program& p, const Values& x, const Answer& want,
                          const cuda::DeviceTraits& device, std::map<std::string, int>& kernels) {
  const Outcome first = run(p, x, device, p.data_seed + 1);
  ++kernels[first.kernel];
  if (!first.guards_intact) return "wrote outside its buffers";
  bool expects_fault = false;
  if (p.bad_page >= 0) {
    Program whole = p;
    whole.bad_page = -1;
    expects_fault = page_is_seen(whole, 0, p.bad_page);
  }
  if (first.fault != (expects_fault ? kFaultPageId : kFaultNone))
    return "fault word is " + std::to_string(first.fault);
  // The Hopper kernel reads a page that does not exist as zeros (docs/conventions.md, 12).
  const std::string_view kernel = first.kernel;
  const bool is_hopper = kernel.starts_with("sm90");
  if (!expects_fault || !is_hopper)
    if (const std::string wrong = compare(p, want, first); !wrong.empty()) return wrong;
  if (!same_bits(first, run(p, x, device, p.data_seed + 1))) return "a second run differs";
  const Outcome late = run(p, x, device, p.data_seed + 1, true);
  if (late.fault != first.fault) return "lengths written late: fault " + std::to_string(late.fault);
  if (!same_bits(first, late)) return "lengths written late: the answer differs";

  Program other = p;  // the same keys elsewhere
  if (p.bad_page < 0) {
    other.paged = !p.paged;
    const Outcome moved = run(other, x, device, p.data_seed + 2);
    // In pages of fewer than 8 keys, which are no box of the copy engine, long sequences take another
    // kernel.
    const bool comparable = p.page_size >= 8 || moved.kernel == kernel;
    if (comparable && !same_bits(first, moved)) return "paged and dense differ";
    other.paged = true;
    other.page_size = p.page_size == 16 ? 64 : 16;
    const Outcome resized = run(other, x, device, p.data_seed + 3);
    if ((comparable || resized.kernel == kernel) && !same_bits(first, resized))
      return "page sizes differ";
  }
  if (p.fixed_split > 0)
    for (int b = 0; b < p.batch_size(); ++b)
      if (!same_bits(rows_of(p, first, b),
                     run(alone(p, b), values_of(p, x, b), device, p.data_seed + 4)))
        return "sequence " + std::to_string(b) + " differs without the rest of the batch";
  return "";
}

// Says which program a kernel hangs in, and ends the process: nothing else can.
class Watchdog {
 public:
  explicit Watchdog(const std::vector<Program>& programs)
      : thread_([this, &programs] {
          for (int seen = -1, same = 0; !done_;) {
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
            const int at = at_;
            same = at == seen ? same + 1 : 0;
            seen = at;
            if (same < 100 || at < 0) continue;
            std::printf("FAIL program %d (%s): hangs\n", at, programs[at].describe().c_str());
            std::fflush(stdout);
            std::_Exit(1);
          }
        }) {}
  ~Watchdog() {
    done_ = true;
    thread_.join();
  }
  void begin(int program) { at_ = program; }

 private:
  std::atomic<int> at_{-1};
  std::atomic<bool> done_{false};
  std::thread thread_;
};

int check_programs(int count, uint64_t seed, const cuda::DeviceTraits& device) {
  std::vector<Program> programs;
  Random random(seed);
  for (int i = 0; i < count; ++i) programs.push_back(random_program(random));

  std::vector<Values> values(count);
  std::vector<Answer> answers(count);
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t)
    threads.emplace_back([&] {
      for (int i; (i = next++) < count;) {
        values[i] = random_values(programs[i]);
        answers[i] = reference(programs[i], values[i]);
      }
    });
  for (std::thread& thread : threads) thread.join();

  int failed = 0;
  std::map<std::string, int> kernels;
  Watchdog watchdog(programs);
  for (int i = 0; i < count; ++i) {
    watchdog.begin(i);
    cuda::DeviceTraits traits = device;
    if (i % 2 == 1) traits.max_smem = std::min<size_t>(traits.max_smem, 101376);
    const std::string wrong = check_program(programs[i], values[i], answers[i], traits, kernels);
    if (wrong.empty()) continue;
    ++failed;
    std::printf("FAIL program %d (%s): %s\n", i, programs[i].describe().c_str(), wrong.c_str());
  }
  std::vector<unsigned char> places(cuda::kMergeBytes);
  check(cudaMemcpy(places.data(), device.merge_places, places.size(), cudaMemcpyDeviceToHost),
        "places");
  for (const unsigned char byte : places)
    if (byte != 0xff) check(cudaErrorUnknown, "a place of decode's parts is not empty");
  for (const auto& [name, uses] : kernels) std::printf("  %-18s %d programs\n", name.c_str(), uses);
  std::printf("%s: %d programs from seed %llu, %d failed\n", failed == 0 ? "PASS" : "FAIL", count,
              static_cast<unsigned long long>(seed), failed);
  return failed;
}

cuda::DeviceTraits device_traits() {
  int device = 0, major = 0, minor = 0, sms = 0, smem = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "major");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "minor");
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "sms");
  check(cudaDeviceGetAttribute(&smem, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "smem");
  static const Buffer places(cuda::kMergeBytes);  // a Buffer is 0xff until written
  static const Buffer counters(std::vector<int32_t>(cuda::kNumCounters, 0));
  return {10 * major + minor,        sms,
          static_cast<size_t>(smem), counters.as<int32_t>(),
          places.as<void>(),         cuda::has_copy_engine(),
          cuda::memory_gbps()};
}

}  // namespace
}  // namespace flash_gqa::test

int main(int argc, char** argv) {
  using namespace flash_gqa::test;
  const std::string mode = argc > 1 ? argv[1] : "all";
  const int count = argc > 2 ? std::atoi(argv[2]) : 400;
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  const flash_gqa::cuda::DeviceTraits device = device_traits();
  std::printf("sm_%d, %d multiprocessors, %zu bytes of shared memory per block\n", device.sm,
              device.num_sms, device.max_smem);
  if (mode == "resident") {
    Residency(device).check_all();
    return 0;
  }
  const int failed = mode == "time" ? 0 : check_programs(count, seed, device);
  if (mode != "check") time_all(device);
  return failed == 0 ? 0 : 1;
}
