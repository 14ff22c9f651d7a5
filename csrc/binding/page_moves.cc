// movePages: pages of a cache between its pool and host memory.
#include <cstring>

#include "args.h"
#include "functions.h"
#include "values.h"

namespace flash_gqa::binding {
namespace {

// Int32Array [num_runs, 3] of (page, host page, count).
std::vector<PageRun> runs_at(const Args& args, const Napi::CallbackInfo& info, int32_t num_runs,
                             const MovePagesParams& params) {
  const HostBytes words = host_bytes_at(info, 1, "movePages: runs");
  if (static_cast<int64_t>(words.bytes) < num_runs * int64_t{sizeof(PageRun)})
    args.fail("runs are fewer than " + std::to_string(num_runs));
  std::vector<PageRun> runs(static_cast<size_t>(num_runs));
  if (num_runs > 0) std::memcpy(runs.data(), words.data, runs.size() * sizeof(PageRun));
  for (const PageRun& run : runs) {
    args.expect(run.page >= 0 && run.host_page >= 0 && run.count >= 0, "a run below 0");
    args.expect(run.count <= params.num_pages - int64_t{run.page}, "a run ends behind the pool");
    args.expect(run.count <= params.host_pages - int64_t{run.host_page},
                "a run ends behind the host memory");
  }
  return runs;
}

// What the copies touch, kept until they have ended, whatever is disposed meanwhile.
struct Moved {
  std::shared_ptr<Block> pool;
  std::shared_ptr<Block> host;
};

}  // namespace

Napi::Value move_pages(Environment& environment, const Napi::CallbackInfo& info) {
  Args args(environment, info, "movePages");
  const Ref pool = args.ref("pool");
  const Ref host = args.ref("host");
  MovePagesParams params{};
  params.page_bytes = args.i64("pageBytes");
  params.num_layers = args.i32("numLayers");
  params.num_pages = args.i32("numPages");
  params.host_pages = args.i32("hostPages");
  params.to_host = args.flag("toHost") != 0;
  const int32_t num_runs = args.i32("numRuns");
  args.end();
  refuse_in_capture(*args.device(), "movePages");

  args.require(pool);
  params.pool = static_cast<char*>(
      args.output(pool, product(params.num_layers, params.num_pages, params.page_bytes), 1));
  params.host = args.host(host, product(params.num_layers, params.host_pages, params.page_bytes));
  params.runs = runs_at(args, info, num_runs, params);
  const auto moved = std::make_shared<Moved>(
      Moved{pool.block->shared_from_this(), host.block->shared_from_this()});
  Backend& backend = args.backend();
  return environment.completion().wait({}, moved, [&](WaitCallback done) {
    backend.move_pages(std::move(params), std::move(done));
  });
}

}  // namespace flash_gqa::binding
