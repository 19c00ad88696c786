// Cuts a model into contiguous pipeline stages of equal cost, as nearly as its blocks allow.
//
// Of all cuts with the least cost of the dearest stage (which sets a pipeline's pace) the one with the least
// sum of squares is taken, so that the others are even too. Exact: dynamic programming over the cuts.
//
// Pure functions, any thread. Errors: UserError where there are more stages than blocks.
//
//   std::vector<int> cuts = balance(costs_of_blocks, 4);       // stage s has blocks cuts[s] .. cuts[s+1]-1
#pragma once

#include <span>
#include <vector>

namespace flywheel::train {

// `stages` + 1 numbers, from 0 to costs.size(), ascending: each stage has at least one block.
std::vector<int> balance(std::span<const double> costs, int stages);

}  // namespace flywheel::train
