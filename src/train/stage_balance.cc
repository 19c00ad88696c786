#include "train/stage_balance.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/result.h"

namespace flywheel::train {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

constexpr double kAttentionBackward = 2.5;  // of its forward: the scores are made again (Dao et al. 2022)
constexpr double kElementwiseBackward = 1.5;
// Operations of products in the time that one value takes to be read or written: 170 on a core of 0.25
// TFLOP/s and 5 GB/s, 310 on an H200.
constexpr double kOperationsAValue = 200;

// least[s][i]: the least cost of the dearest stage when the first i blocks make s stages.
double least_dearest(const std::vector<double>& sum, int stages) {
  const int n = static_cast<int>(sum.size()) - 1;
  const auto at = [](int i) { return static_cast<size_t>(i); };
  std::vector<double> least(sum.size(), kNever), next(sum.size());
  least[0] = 0;
  for (int s = 1; s <= stages; ++s) {
    std::ranges::fill(next, kNever);
    for (int i = s; i <= n; ++i) {
      // least falls with a shorter last stage and the last stage's own cost rises: meet in the middle.
      int low = s - 1, high = i - 1;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (least[at(middle)] >= sum[at(i)] - sum[at(middle)]) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      for (const int j : {low, low - 1}) {
        if (j < s - 1) continue;
        next[at(i)] = std::min(next[at(i)], std::max(least[at(j)], sum[at(i)] - sum[at(j)]));
      }
    }
    least.swap(next);
  }
  return least[at(n)];
}

}  // namespace

std::vector<int> balance(std::span<const double> costs, int stages) {
  const int n = static_cast<int>(costs.size());
  if (stages < 1 || stages > n) {
    throw UserError("pipeline", fmt::format("{} stages for {} blocks (embedding, layers, head)", stages, n),
                    "each stage needs at least one");
  }
  const auto at = [](int i) { return static_cast<size_t>(i); };
  std::vector<double> sum(at(n + 1), 0);
  for (int i = 0; i < n; ++i) {
    CHECK(costs[at(i)] >= 0, "a block of cost {}", costs[at(i)]);
    sum[at(i + 1)] = sum[at(i)] + costs[at(i)];
  }
  const double bound = least_dearest(sum, stages) * (1 + 1e-12);
  // squares[s][i] with no stage above the bound; from[s][i]: where its last stage begins.
  std::vector<std::vector<double>> squares(at(stages + 1), std::vector<double>(at(n + 1), kNever));
  std::vector<std::vector<int>> from(at(stages + 1), std::vector<int>(at(n + 1), -1));
  squares[0][0] = 0;
  for (int s = 1; s <= stages; ++s) {
    for (int i = s; i <= n; ++i) {
      for (int j = i - 1; j >= s - 1; --j) {
        const double last = sum[at(i)] - sum[at(j)];
        if (last > bound) break;
        const double total = squares[at(s - 1)][at(j)] + last * last;
        if (total < squares[at(s)][at(i)]) squares[at(s)][at(i)] = total, from[at(s)][at(i)] = j;
      }
    }
  }
  std::vector<int> cuts(at(stages + 1), n);
  for (int s = stages; s > 0; --s) {
    cuts[at(s - 1)] = from[at(s)][at(cuts[at(s)])];
    CHECK(cuts[at(s - 1)] >= 0, "no cut of {} blocks into {} stages", n, stages);
  }
  return cuts;
}

double block_cost(const BlockCost& block) {
  return 3 * block.linear_flop + (1 + kAttentionBackward) * block.attention_flop +
         (1 + kElementwiseBackward) * kOperationsAValue * block.elementwise_width;
}

std::vector<int> stage_cuts(const ModelCost& model, int stages) {
  std::vector<double> costs;
  for (const BlockCost& block : model.blocks) costs.push_back(block_cost(block));
  return balance(costs, stages);
}

}  // namespace flywheel::train
