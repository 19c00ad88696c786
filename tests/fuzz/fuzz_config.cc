// Config files (YAML): a config or a UserError, and a config that was read is read again from its dump.
#include "base/config.h"

#include <cstdint>

#include "base/check.h"
#include "fuzzer.h"

namespace {

struct Inner {
  double rate = 1e-3;
  std::vector<double> betas = {0.9};
  template <typename V>
  void fields(V& v) {
    v("rate", rate), v("betas", betas);
  }
};
struct Outer {
  std::string name;
  bool on = false;
  int steps = 1;
  uint64_t seed = 0;
  std::optional<std::string> note;
  std::map<std::string, std::string> labels;
  std::vector<Inner> inner;
  template <typename V>
  void fields(V& v) {
    v("name", name), v("on", on), v("steps", steps), v("seed", seed), v("note", note), v("labels", labels);
    v("inner", inner);
  }
};

std::vector<std::string> seeds() {
  return {
      "name: a run  # comment\non: yes\nsteps: 1e3\nseed: 18\nnote: null\nlabels: {a: b, c: \"d\\n\"}\n"
      "inner:\n  - rate: .5\n    betas: [1, 2.5e-3]\n  - &x {rate: 1_000}\n  - *x\n",
      "%YAML 1.2\n---\nname: |\n  two\n  lines\nnote: !!str 'it''s'\n? steps\n: 0x10\n...\n",
      R"({"name": "json", "inner": [{"betas": []}]})"};
}

void run(std::string_view input) {
  const std::string text(input);
  std::string dump;
  try {
    dump = flywheel::dump_config(flywheel::parse_config<Outer>("fuzz.yaml", text));
  } catch (const flywheel::UserError&) {
    return;
  }
  CHECK(flywheel::dump_config(flywheel::parse_config<Outer>("dump.yaml", dump)) == dump, "read again: {}",
        dump);
}

const FuzzerRegistration registration("config", seeds, run);

}  // namespace
