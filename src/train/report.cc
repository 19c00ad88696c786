#include "train/report.h"

namespace flywheel::train {

Chart loss_chart(const TrainReport& report) {
  Chart chart{.title = "loss of " + report.run, .x_label = "step", .y_label = "nats per token"};
  Series train{.name = "train"}, validation{.name = "validation"};
  for (size_t i = 0; i < report.losses.size(); ++i) {
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
