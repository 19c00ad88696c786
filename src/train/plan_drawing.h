// The memory of planned meshes as a picture: a bar for the fullest worker of each, by kind, beside what there
// is.
//
// Pure function, any thread.
//
//   write_file("memory.svg", draw_memory_svg(planner.best(1024).best));
#pragma once

#include <string>
#include <vector>

#include "train/plan.h"

namespace flywheel::train {

// A complete SVG document, readable on light and dark ground.
std::string draw_memory_svg(const std::vector<Prediction>& predictions, int width = 900);

}  // namespace flywheel::train
