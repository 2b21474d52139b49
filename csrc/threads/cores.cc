// How many cores there are for this process: by its threads' affinity, and by its container's limit.
#include "cores.h"

#include <math.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "groupwise.h"

namespace {

// The cores that the calling thread, and what it starts, may run on.
int64_t cores_by_affinity() {
#if defined(__linux__)
  cpu_set_t sets[8];  // 8,192 cores
  if (sched_getaffinity(0, sizeof sets, sets) == 0) return CPU_COUNT_S(sizeof sets, sets);
#endif
  return std::thread::hardware_concurrency();
}

// How many cores' time a control group allows, by its folder's files; infinity where they say nothing.
double group_limit(const std::string& folder, bool is_unified) {
  int64_t quota = 0, period = 0;  // "max" and -1 are no limit
  if (is_unified) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? double(quota) / double(period) : INFINITY;
}

// The least limit of this process's control groups and of those around them, as /proc/self/cgroup names them: lines
// "0::/path" of version 2, "4:cpu,cpuacct:/path" of version 1. In a container the mounted folder may be the path's end
// itself, so that a part of the path is not there.
double find_limit(const std::string& root) {
  double least = INFINITY;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_unified = controllers == ",,";
    if (!is_unified && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string mounted = root + (is_unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
    std::string path = line.substr(second + 1);
    for (size_t end = path.size(); end != std::string::npos; end = path.rfind('/')) {
      path.erase(end);
      least = std::min(least, group_limit(mounted + path, is_unified));
    }
  }
  return least;
}

constexpr int64_t kUnknown = -1;
std::atomic<int64_t> limit{kUnknown};

}  // namespace

extern "C" int64_t gw_cpu_limit(const char* root) {
  try {
    const double cores = ceil(find_limit(root ? root : ""));
    return cores < double(INT32_MAX) ? int64_t(cores) : 0;
  } catch (...) {  // no memory for a path
    return 0;
  }
}

int64_t gw_usable_cores() {
  int64_t most = limit.load();
  if (most == kUnknown) limit.store(most = gw_cpu_limit(nullptr));
  const int64_t cores = std::max<int64_t>(1, cores_by_affinity());
  return most > 0 ? std::min(cores, most) : cores;
}

void gw_forget_cpu_limit() { limit.store(kUnknown); }
