#include "machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>
#include <vector>

namespace flash_gqa {
namespace {

constexpr int64_t kUnlimited = INT64_MAX;

// The first word of a file as a number, or `otherwise` ("max", unreadable).
int64_t read_number(const std::string& path, int64_t otherwise) {
  std::ifstream file(path);
  int64_t value;
  return file >> value ? value : otherwise;
}

// The number behind `key` in a file of "key number" or "key: number kB" lines.
int64_t read_field(const std::string& path, const std::string& key, int64_t otherwise) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t value;
    if (words >> name >> value && (name == key || name == key + ":")) return value;
  }
  return otherwise;
}

// Directories of the control groups that this process is in, innermost first. A limit may sit on
// any of them. `controller` is a version 1 controller; version 2 groups have none.
std::vector<std::string> group_directories(const std::string& controller) {
  std::vector<std::string> directories;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    bool found = controller.empty() && controllers.str().empty();
    for (std::string name; std::getline(controllers, name, ',');)
      found |= !controller.empty() && name == controller;
    if (!found) continue;
    std::string root = "/sys/fs/cgroup";
    if (!controller.empty()) root.append("/").append(controller);
    std::string path = line.substr(second + 1);
    while (path.size() > 1) {
      directories.push_back(root + path);
      path.resize(path.rfind('/'));
    }
    directories.push_back(root);
  }
  return directories;
}

double processor_quota() {
  double quota = HUGE_VAL;
  for (const std::string& directory : group_directories("")) {
    std::ifstream file(directory + "/cpu.max");
    double time, period;
    if (file >> time >> period && time > 0 && period > 0) quota = std::min(quota, time / period);
  }
  for (const std::string& directory : group_directories("cpu")) {
    const int64_t time = read_number(directory + "/cpu.cfs_quota_us", -1);
    const int64_t period = read_number(directory + "/cpu.cfs_period_us", -1);
    if (time > 0 && period > 0) quota = std::min(quota, static_cast<double>(time) / period);
  }
  return quota;
}

// Narrows `memory` to one control group. Page cache that can be dropped does not count as used.
void narrow(HostMemory& memory, int64_t limit, int64_t used, int64_t reclaimable) {
  if (limit <= 0 || limit >= memory.total) return;
  memory.total = limit;
  memory.available = std::min(
      memory.available, std::max<int64_t>(0, limit - std::max<int64_t>(0, used - reclaimable)));
}

// `ulimit -v` counts what is mapped, touched or not; V8 ends the process that runs into it.
void narrow_to_address_space(HostMemory& memory) {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  const int64_t mapped = read_number("/proc/self/statm", 0) * sysconf(_SC_PAGESIZE);
  const int64_t left = static_cast<int64_t>(limit.rlim_cur) - mapped;
  memory.available = std::min(memory.available, std::max<int64_t>(0, left));
}

}  // namespace

int processor_share() {
  cpu_set_t set;
  int processors = 0;
  if (sched_getaffinity(0, sizeof set, &set) == 0) processors = CPU_COUNT(&set);
  // More processors than a cpu_set_t holds: the call fails, and all of them count.
  if (processors <= 0) processors = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const double quota = processor_quota();
  // A fraction of a processor is not worth a thread: it would be throttled in the middle of a job.
  if (quota < processors) processors = static_cast<int>(quota);
  return std::max(processors, 1);
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos)
      return line.substr(colon + 2);
  }
  return "CPU";
}

HostMemory host_memory() {
  const int64_t total = read_field("/proc/meminfo", "MemTotal", 0) * 1024;
  HostMemory memory{total, read_field("/proc/meminfo", "MemAvailable", total / 1024) * 1024};
  for (const std::string& directory : group_directories("")) {
    narrow(memory, read_number(directory + "/memory.max", kUnlimited),
           read_number(directory + "/memory.current", 0),
           read_field(directory + "/memory.stat", "inactive_file", 0));
  }
  for (const std::string& directory : group_directories("memory")) {
    narrow(memory, read_number(directory + "/memory.limit_in_bytes", kUnlimited),
           read_number(directory + "/memory.usage_in_bytes", 0),
           read_field(directory + "/memory.stat", "total_inactive_file", 0));
  }
  narrow_to_address_space(memory);
  return memory;
}

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size, resident = 0;
  file >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace flash_gqa
