// A played pipeline schedule for people: characters for terminals, SVG for files and pages.
//
//   Timeline t = simulate(schedule, costs).value();
//   std::puts(draw_terminal(schedule, t).c_str());
//   write_file("zbv.svg", draw_svg(schedule, t));
#pragma once

#include <string>

#include "train/pipeline_simulator.h"

namespace flywheel::train {

// A row a worker, a cell a unit of time (the shortest action, or more where `columns` is too narrow):
//   worker 0 │F0 F1 F2 F3 ·  ·  B0 B0 ...
// A second chunk is written in small letters, where there are more with its number (F3.2).
std::string draw_terminal(const PipelineSchedule& schedule, const Timeline& timeline, int columns = 160);

// A complete SVG document, readable on light and dark ground.
std::string draw_svg(const PipelineSchedule& schedule, const Timeline& timeline, int width = 1200);

// "1f1b: 4 workers, 8 microbatches; bubble 37.5% of work; live activations 4 3 2 1"
std::string describe_timeline(const PipelineSchedule& schedule, const Timeline& timeline);

}  // namespace flywheel::train
