// The host's half of adamw.cu: what a step's kernels read from device memory (device_table.h).
//
//   const auto pieces = adamw_pieces({{0, 4096, 0.1f}, {4096, 4160, 0}});    // once; uploaded
//   StepTerms terms = step_terms({.lr = lr, .t = update + 1});               // each step; uploaded
//   terms.times = targets, terms.clip_norm = 1;
//   k.gradient_norm(stream, norm, workspace, g, n, terms_on_device);
//   k.adamw(stream, w, m, v, g, copy, pieces_on_device, std::ssize(pieces), terms_on_device, norm);
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/device_table.h"

namespace flywheel::kernels {

// Values [begin, end) of flat buffers that share a weight decay.
struct AdamWSegment {
  int64_t begin, end;
  float weight_decay;
};

std::vector<AdamWPiece> adamw_pieces(const std::vector<AdamWSegment>& segments);

// Of lr, betas, epsilon, l2 and t; weight_decay is the pieces', gradient_scale the device's own.
StepTerms step_terms(const AdamWStep& step);

}  // namespace flywheel::kernels
