// Cuts a model into contiguous pipeline stages of equal cost, as nearly as its blocks allow.
//
// Of all cuts with the least cost of the dearest stage (which sets a pipeline's pace) the one with the least
// sum of squares is taken, so that the others are even too. Exact: dynamic programming over the cuts.
//
// The trainer (layout.h) and the planner (plan.h) cut with stage_cuts(); so what is foretold is what runs.
//
// Pure functions, any thread. Errors: UserError where there are more stages than blocks.
//
//   std::vector<int> cuts = stage_cuts(model_cost(decoder, length), 4);   // stage s: blocks cuts[s] ..
//   cuts[s+1]-1
#pragma once

#include <span>
#include <vector>

#include "train/model_cost.h"

namespace flywheel::train {

// `stages` + 1 numbers, from 0 to costs.size(), ascending: each stage has at least one block.
std::vector<int> balance(std::span<const double> costs, int stages);

// What forward and backward of a block take, in operations of its products.
double block_cost(const BlockCost& block);
// balance() over the model's blocks: embedding, layers, head.
std::vector<int> stage_cuts(const ModelCost& model, int stages);

}  // namespace flywheel::train
