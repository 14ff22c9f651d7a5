// Which back end of a GPU may run kernels whose blocks wait for each other.
//
// Such a kernel needs all its blocks resident at once. Two of them, on streams of their own, could
// each hold half of the multiprocessors and wait for the other half. One stream cannot do that to
// itself, so the first back end of a GPU in this process has the claim as long as it lives; others
// take the kernels that wait for nobody.
#pragma once

#include <atomic>
#include <cstdint>

namespace flash_gqa {

class ResidencyClaim {
 public:
  explicit ResidencyClaim(int32_t device)
      : device_(device),
        held_(device >= 0 && device < kDevices && !taken_[device].exchange(true)) {}
  ~ResidencyClaim() {
    if (held_) taken_[device_].store(false);
  }
  ResidencyClaim(const ResidencyClaim&) = delete;
  ResidencyClaim& operator=(const ResidencyClaim&) = delete;

  bool held() const { return held_; }

 private:
  static constexpr int32_t kDevices = 64;
  static inline std::atomic<bool> taken_[kDevices];
  const int32_t device_;
  const bool held_;
};

}  // namespace flash_gqa
