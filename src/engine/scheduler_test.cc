// Runs testdata/scheduler/*.txt: what is submitted, and what each step must plan.
//
//   pool 4 blocks   budget 32 tokens   running 8      the limits, first line
//   submit a prompt 30 max_new 40                     [cached 16]: so many tokens are in shared blocks
//   step -> decode a | prefill b 2..20 | free 0       also `preempt c`, `admit d`; compared word by word
//   finish a                                          leaves, as if cancelled
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "base/check.h"
#include "base/philox.h"

namespace flywheel::engine {
namespace {

// A pool that only counts, and sequences that are numbers.
class Simulation {
 public:
  struct Item {
    std::string name;
    int64_t id, prompt, max_new, generated = 0, computed = 0, blocks = 0, shared = 0;
    int64_t tokens() const { return prompt + generated; }
  };

  int64_t pool = 0;
  SchedulerLimits limits;
  std::vector<Item> running, waiting;

  int64_t free_blocks() const {
    int64_t held = 0;
    for (const Item& item : running) held += item.blocks - item.shared;
    return pool - held;
  }

  void submit(Item item) {
    item.id = next_id_++;
    waiting.push_back(std::move(item));
  }

  void finish(const std::string& name) {
    const auto named = [&](const Item& item) { return item.name == name; };
    std::erase_if(running, named), std::erase_if(waiting, named);
  }

  std::string step() {
    SchedulerState state;
    for (const Item& item : running) {
      state.running.push_back(
          {item.id, item.tokens(), item.computed, item.blocks, item.blocks - item.shared});
    }
    for (const Item& item : waiting) {
      state.waiting.push_back({item.id, item.tokens(), item.shared * kBlockTokens, item.shared, 0});
    }
    state.free_blocks = free_blocks();
    last_plan = plan_step(state, limits);
    return apply(last_plan);
  }
  Plan last_plan;

 private:
  Item& find(int64_t id) {
    const auto it = std::ranges::find(running, id, &Item::id);
    CHECK(it != running.end(), "sequence {} does not run", id);
    return *it;
  }

  std::string apply(const Plan& plan) {
    std::string text;
    const auto say = [&](const std::string& part) { text += (text.empty() ? "" : " | ") + part; };
    for (const int64_t id : plan.preempt) {
      Item item = find(id);
      std::erase_if(running, [&](const Item& other) { return other.id == id; });
      say("preempt " + item.name);
      item.computed = item.blocks = item.shared = 0;
      waiting.insert(waiting.begin(), item);
    }
    for (const int64_t id : plan.admit) {
      CHECK(!waiting.empty() && waiting.front().id == id, "{} overtook", id);
      Item item = waiting.front();
      waiting.erase(waiting.begin());
      item.blocks = item.shared, item.computed = item.shared * kBlockTokens;
      say("admit " + item.name);
      running.insert(std::ranges::lower_bound(running, item.id, {}, &Item::id), item);
    }
    std::string decode;
    for (const Chunk& chunk : plan.decode) decode += " " + find(chunk.id).name;
    if (!decode.empty()) say("decode" + decode);
    for (const Chunk& chunk : plan.prefill) {
      say("prefill " + find(chunk.id).name + " " + std::to_string(chunk.begin) + ".." +
          std::to_string(chunk.end));
    }
    std::vector<std::string> done;
    for (const auto* chunks : {&plan.decode, &plan.prefill}) {
      for (const Chunk& chunk : *chunks) {
        Item& item = find(chunk.id);
        CHECK(chunk.begin == item.computed && chunk.end > chunk.begin && chunk.end <= item.tokens(),
              "a wrong chunk");
        item.blocks += chunk.new_blocks, item.computed = chunk.end;
        CHECK(item.blocks >= blocks_for(item.computed), "{} has too few blocks", item.name);
        if (item.computed == item.tokens() && ++item.generated == item.max_new) done.push_back(item.name);
      }
    }
    CHECK(free_blocks() >= 0, "more blocks given out than there are");
    say("free " + std::to_string(free_blocks()));
    for (const std::string& name : done) {
      finish(name);
      say("done " + name);
    }
    return text;
  }

  int64_t next_id_ = 0;
};

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

void run_file(const std::filesystem::path& path) {
  SCOPED_TRACE(path.filename().string());
  std::ifstream file(path);
  Simulation simulation;
  std::string line, word;
  for (int number = 1; std::getline(file, line); ++number) {
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    std::istringstream words(line);
    words >> word;
    if (word == "pool") {
      words >> simulation.pool >> word >> word >> simulation.limits.step_tokens >> word >> word >>
          simulation.limits.max_running;
    } else if (word == "submit") {
      Simulation::Item item{};
      words >> item.name >> word >> item.prompt >> word >> item.max_new;
      int64_t cached = 0;
      if (words >> word >> cached) item.shared = cached / kBlockTokens;
      simulation.submit(item);
    } else if (word == "finish") {
      words >> word;
      simulation.finish(word);
    } else {
      ASSERT_EQ(word, "step") << "line " << number;
      ASSERT_EQ(simulation.step(), trimmed(line.substr(line.find("->") + 2)))
          << "line " << number << ": " << line;
    }
  }
}

TEST(Scheduler, DoesWhatTheFilesSay) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(FLYWHEEL_ROOM_DIR "/testdata/scheduler")) {
    run_file(entry.path());
    ++files;
  }
  EXPECT_GE(files, 5);
}

// A sequence whose tokens' logits are all wanted takes the rows that are left beside one for each other.
TEST(Scheduler, LogitsOfAllTokensAreTakenAsRowsAllow) {
  const SchedulerLimits limits{.step_tokens = 64, .max_running = 8, .step_rows = 8};
  SchedulerState state{.free_blocks = 100};
  state.running.push_back({.id = 0, .tokens = 40, .computed = 39, .blocks = 3, .own_blocks = 3});
  state.running.push_back({.id = 1, .tokens = 100, .every_row = true});
  state.running.push_back({.id = 2, .tokens = 30});
  state.waiting.push_back({.id = 3, .tokens = 5});
  Plan plan = plan_step(state, limits);
  ASSERT_EQ(plan.decode.size(), 1u);
  ASSERT_EQ(plan.prefill.size(), 2u);
  EXPECT_EQ(plan.prefill[0].id, 1);
  EXPECT_EQ(plan.prefill[0].end, 6);  // its own row, and 5 of 8 that no other needs
  EXPECT_EQ(plan.prefill[1].end, 30);
  EXPECT_TRUE(plan.admit.empty());  // there is no row for it in this step
  state.running[1].every_row = false;
  plan = plan_step(state, limits);
  EXPECT_EQ(plan.prefill[0].end, 63);

  state.running.clear();
  state.waiting = {{.id = 3, .tokens = 90, .every_row = true}, {.id = 4, .tokens = 5}};
  plan = plan_step(state, limits);
  ASSERT_EQ(plan.admit.size(), 1u);
  EXPECT_EQ(plan.prefill[0].end, 8);
}

// Whatever comes: nothing is given twice, no step is empty while there is work, all finish.
TEST(Scheduler, RandomLoadsAlwaysFinish) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Philox random(seed);
    Simulation simulation;
    simulation.pool = 2 + static_cast<int64_t>(random.below(30));
    simulation.limits.step_tokens = 1 + static_cast<int64_t>(random.below(64));
    simulation.limits.max_running =
        1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(simulation.limits.step_tokens)));
    const int64_t longest = simulation.pool * kBlockTokens;
    int to_submit = 40;
    for (int steps = 0; to_submit > 0 || !simulation.running.empty() || !simulation.waiting.empty();
         ++steps) {
      ASSERT_LT(steps, 200'000) << "seed " << seed << " never ends";
      if (to_submit > 0 && random.below(3) == 0) {
        const auto total = 2 + static_cast<int64_t>(random.below(static_cast<uint64_t>(longest - 1)));
        const auto prompt = 1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(total - 1)));
        simulation.submit(
            {.name = std::to_string(to_submit--), .id = 0, .prompt = prompt, .max_new = total - prompt});
      }
      const bool had_work = !simulation.running.empty() || !simulation.waiting.empty();
      simulation.step();
      int64_t tokens = 0;
      for (const auto* chunks : {&simulation.last_plan.decode, &simulation.last_plan.prefill}) {
        for (const Chunk& chunk : *chunks) tokens += chunk.end - chunk.begin;
      }
      ASSERT_LE(tokens, simulation.limits.step_tokens);
      ASSERT_TRUE(tokens > 0 || !had_work) << "seed " << seed << ": an idle step with work waiting";
    }
  }
}

}  // namespace
}  // namespace flywheel::engine
