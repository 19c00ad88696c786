#include "train/pipeline_drawing.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace flywheel::train {
namespace {

// By ActionKind: forward, backward, weight.
constexpr const char* kColors[] = {"#3b82f6", "#f97316", "#10b981"};
constexpr const char* kLegend[] = {"forward", "backward", "weight gradient"};

double shortest_action(const Timeline& timeline) {
  double shortest = timeline.seconds;
  for (const auto& events : timeline.workers) {
    for (const TimelineEvent& e : events) {
      if (e.end > e.start) shortest = std::min(shortest, e.end - e.start);
    }
  }
  return shortest > 0 ? shortest : 1;
}

std::string cell_text(const Action& action, int chunks) {
  if (chunks != 2) return action_text(action, chunks);
  std::string text = action_text(action, 1);
  if (action.chunk == 1) text[0] = static_cast<char>(text[0] + ('a' - 'A'));
  return text;
}

}  // namespace

std::string draw_terminal(const PipelineSchedule& schedule, const Timeline& timeline, int columns) {
  size_t widest = 1;
  for (const auto& events : timeline.workers) {
    for (const TimelineEvent& e : events) {
      widest = std::max(widest, cell_text(e.action, schedule.chunks).size());
    }
  }
  const size_t label = std::to_string(schedule.workers - 1).size(), cell = widest + 1;
  const size_t room = static_cast<size_t>(std::max(columns, 40)) - label - 8;
  double unit = shortest_action(timeline);
  const double most = static_cast<double>(std::max<size_t>(4, room / cell));
  const bool cut = timeline.seconds / unit > most + 0.5;
  const auto cells = static_cast<size_t>(std::min(most, std::ceil(timeline.seconds / unit - 1e-6)));
  std::string out;
  for (int worker = 0; worker < schedule.workers; ++worker) {
    std::vector<std::string> row(cells);
    for (const TimelineEvent& e : timeline.workers[static_cast<size_t>(worker)]) {
      const auto first = static_cast<size_t>(std::lround(e.start / unit));
      const auto last = std::max(first + 1, static_cast<size_t>(std::lround(e.end / unit)));
      for (size_t i = first; i < std::min(last, cells); ++i) row[i] = cell_text(e.action, schedule.chunks);
    }
    out += fmt::format("worker {:>{}} │", worker, label);
    for (const std::string& text : row) {
      // The dot is two bytes of UTF-8 and one column.
      out += text.empty() ? "·" + std::string(cell - 1, ' ') : text + std::string(cell - text.size(), ' ');
    }
    out.erase(out.find_last_not_of(' ') + 1);
    out += cut ? " …\n" : "\n";
  }
  return out;
}

std::string draw_svg(const PipelineSchedule& schedule, const Timeline& timeline, int width) {
  const double left = 80, right = 110, top = 70, row_height = 30, gap = 4;
  const double height = top + schedule.workers * (row_height + gap) + 40, plot = width - left - right;
  const double scale = timeline.seconds > 0 ? plot / timeline.seconds : 1;
  const std::vector<int64_t> live = peak_live(schedule);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<style>text{{fill:#222}}.n{{fill:#fff;font-size:10px;text-anchor:middle}}.idle{{fill:#8882}}"
      ".bg{{fill:#fff}}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}.n{{fill:#fff}}"
      ".bg{{fill:#111}}}}</style>\n"
      "<rect class=\"bg\" width=\"{0}\" height=\"{1}\"/>\n"
      "<text x=\"{2}\" y=\"24\" font-size=\"16\">{3}</text>\n",
      width, height, left, describe_timeline(schedule, timeline));
  const int kinds = schedule.splits_backward ? 3 : 2;
  for (int kind = 0; kind < kinds; ++kind) {
    out += fmt::format(
        "<rect x=\"{0}\" y=\"40\" width=\"12\" height=\"12\" fill=\"{1}\"/><text x=\"{2}\" y=\"50\">{3}"
        "</text>\n",
        left + kind * 130, kColors[kind], left + kind * 130 + 18, kLegend[kind]);
  }
  out +=
      fmt::format("<text x=\"{}\" y=\"{}\" font-size=\"10\">peak live</text>\n", width - right + 8, top - 6);
  for (int worker = 0; worker < schedule.workers; ++worker) {
    const double y = top + worker * (row_height + gap);
    out += fmt::format(
        "<text x=\"{0}\" y=\"{1:.1f}\" text-anchor=\"end\">worker {2}</text>"
        "<rect class=\"idle\" x=\"{3}\" y=\"{4:.1f}\" width=\"{5:.2f}\" height=\"{6}\"/>"
        "<text x=\"{7}\" y=\"{1:.1f}\">{8}</text>\n",
        left - 8, y + row_height / 2 + 4, worker, left, y, plot, row_height, width - right + 8,
        live[static_cast<size_t>(worker)]);
    for (const TimelineEvent& e : timeline.workers[static_cast<size_t>(worker)]) {
      const double x = left + e.start * scale, w = (e.end - e.start) * scale;
      // Later chunks are paler.
      const double opacity = 1 - 0.45 * e.action.chunk / std::max(1, schedule.chunks - 1);
      out += fmt::format(
          "<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{}\" fill=\"{}\" "
          "fill-opacity=\"{:.2f}\"><title>{} {:.4g}..{:.4g}</title></rect>",
          x, y, std::max(0.3, w - 0.6), row_height, kColors[static_cast<size_t>(e.action.kind)], opacity,
          action_text(e.action, schedule.chunks), e.start, e.end);
      if (w >= 13) {
        out += fmt::format("<text class=\"n\" x=\"{:.2f}\" y=\"{:.1f}\">{}</text>", x + w / 2,
                           y + row_height / 2 + 4, e.action.microbatch);
      }
      out += "\n";
    }
  }
  const double base = top + schedule.workers * (row_height + gap) + 14;
  for (int i = 0; i <= 8; ++i) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.4g}</text>\n",
                       left + plot * i / 8, base, timeline.seconds * i / 8);
  }
  out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">time</text>\n", left + plot / 2,
                     base + 18);
  return out + "</svg>\n";
}

std::string describe_timeline(const PipelineSchedule& schedule, const Timeline& timeline) {
  std::string text = fmt::format("{}: {} workers, {} microbatches", config_name(schedule.kind),
                                 schedule.workers, schedule.microbatches);
  if (schedule.chunks > 1) text += fmt::format(", {} chunks each", schedule.chunks);
  const PipelineSize size{schedule.workers, schedule.microbatches, schedule.chunks};
  const double bubble = timeline.bubble();
  return text + fmt::format("; bubble {:.1f}% of work ({:.1f}% of the time), by the formula {:.1f}%",
                            bubble * 100, 100 * bubble / (1 + bubble),
                            100 * bubble_formula(schedule.kind, size));
}

}  // namespace flywheel::train
