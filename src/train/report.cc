#include "train/report.h"

#include <cmath>

#include "base/progress.h"
#include "train/run_training.h"

namespace flywheel::train {

std::string Progress::text() const {
  std::string text = fmt::format("loss {:.3f}", loss);
  if (tokens_per_second)
    text += fmt::format("  {} tok/s", human_count(static_cast<int64_t>(*tokens_per_second)));
  if (limit_share) text += fmt::format("  {:.0f}% of limit", *limit_share * 100);
  return text;
}

void TrainReport::forget_after(int64_t first_step, int64_t steps_done) {
  losses.resize(static_cast<size_t>(steps_done - first_step));
  while (!evaluation_steps.empty() && evaluation_steps.back() > steps_done) {
    evaluation_steps.pop_back();
    evaluation_losses.pop_back();
  }
}

std::string speed_text(const TrainReport& report) {
  if (!report.tokens_per_second) return "not measured: the log answered every step";
  std::string rate = human_count(static_cast<int64_t>(*report.tokens_per_second)) + " tokens/s";
  if (!report.limit_share) return rate;
  return fmt::format("{}, {:.0f}% of what {} can multiply", rate, *report.limit_share * 100,
                     report.on_gpus ? "the GPUs" : "the cores");
}

Chart loss_chart(const TrainReport& report) {
  Chart chart{.title = "loss of " + report.run, .x_label = "step", .y_label = "nats per token"};
  Series train{.name = "train"}, validation{.name = "validation"};
  for (size_t i = 0; i < report.losses.size(); ++i) {
    if (!std::isfinite(report.losses[i])) continue;
    train.x.push_back(
        static_cast<double>(report.steps - std::ssize(report.losses) + static_cast<int64_t>(i) + 1));
    train.y.push_back(report.losses[i]);
  }
  for (size_t i = 0; i < report.evaluation_steps.size(); ++i) {
    validation.x.push_back(static_cast<double>(report.evaluation_steps[i]));
    validation.y.push_back(report.evaluation_losses[i]);
  }
  chart.series.push_back(std::move(train));
  if (!validation.x.empty()) chart.series.push_back(std::move(validation));
  return chart;
}

}  // namespace flywheel::train
