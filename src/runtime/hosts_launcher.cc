#include "runtime/hosts_launcher.h"

#include <algorithm>
#include <map>
#include <utility>

#include "runtime/places_internal.h"

namespace flywheel::runtime {
namespace {

class HostsLauncher : public Launcher {
 public:
  explicit HostsLauncher(HostsLauncherOptions options)
      : options_(std::move(options)), local_(make_local_launcher(options_.local)) {
    for (const Host& host : options_.hosts) places_[host.name].workers = std::make_shared<int>(0);
  }

  Host place(const Host& host, int failed) override {
    Place& place = places_[host.name];
    if (failed > 0) ++place.failed;
    const bool first = !std::exchange(place.used, true);
    if (first && failed == 0) return host;
    const auto usable = options_.usable ? options_.usable() : std::nullopt;
    const auto may = [&](const Host& one) {
      return !usable || std::ranges::find(*usable, one.name) != usable->end();
    };
    if (failed == 0 && may(host)) return host;
    std::vector<PlaceState> states;
    for (const Host& one : options_.hosts) {
      const Place& there = places_[one.name];
      states.push_back({may(one), there.failed, *there.workers});
    }
    const auto best = best_place(states);
    if (!best) return host;
    places_[options_.hosts[*best].name].used = true;
    return options_.hosts[*best];
  }

  Result<std::unique_ptr<WorkerProcess>> start(const WorkerSpec& spec) override {
    ASSIGN_OR_RETURN(auto process, local_->start(spec));
    return std::unique_ptr<WorkerProcess>(
        std::make_unique<CountedProcess>(std::move(process), places_[spec.host.name].workers));
  }
  void finish() override { local_->finish(); }

 private:
  struct Place {
    std::shared_ptr<int> workers = std::make_shared<int>(0);
    int failed = 0;     // starts that did not come up
    bool used = false;  // a worker was started there
  };
  HostsLauncherOptions options_;
  std::unique_ptr<Launcher> local_;
  std::map<std::string, Place> places_;
};

}  // namespace

std::unique_ptr<Launcher> make_hosts_launcher(HostsLauncherOptions options) {
  return std::make_unique<HostsLauncher>(std::move(options));
}

}  // namespace flywheel::runtime
