#include "train/network.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <limits>
#include <map>

#include "base/check.h"
#include "train/functions.h"

namespace flywheel::train {
namespace {

using model::Op;
using model::Step;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Values = std::map<int, Tensor>;  // by index into Decoder::values

// Steps that are run together: a layer, or what lies before and after the layers.
struct Segment {
  size_t begin = 0, end = 0;
  std::vector<int> in, out;  // values that come from before, and that go on after
};

std::vector<Segment> segments_of(const model::Decoder& decoder) {
  std::vector<Segment> segments;
  for (size_t i = 0; i < decoder.steps.size(); ++i) {
    if (segments.empty() || decoder.steps[i].layer != decoder.steps[i - 1].layer)
      segments.push_back({.begin = i});
    segments.back().end = i + 1;
  }
  std::vector<size_t> made(decoder.values.size(), 0), last_use(decoder.values.size(), 0);
  for (size_t i = 0; i < decoder.steps.size(); ++i) {
    made[static_cast<size_t>(decoder.steps[i].out)] = i;
    for (const int in : decoder.steps[i].in) last_use[static_cast<size_t>(in)] = i;
  }
  for (Segment& s : segments) {
    for (size_t i = s.begin; i < s.end; ++i) {
      for (const int in : decoder.steps[i].in) {
        if (made[static_cast<size_t>(in)] < s.begin && std::ranges::find(s.in, in) == s.in.end())
          s.in.push_back(in);
      }
      const int out = decoder.steps[i].out;
      if (last_use[static_cast<size_t>(out)] >= s.end) s.out.push_back(out);
    }
  }
  return segments;
}

Tensor run_step(Pass& pass, const model::Decoder& decoder, const Step& step, const Values& values,
                const Tensor& anchor) {
  const auto in = [&](size_t i) -> const Tensor& { return values.at(step.in[i]); };
  const int64_t width = decoder.values[static_cast<size_t>(step.out)].width;
  switch (step.op) {
    case Op::kEmbed:
      return embed(pass, anchor, step.weight, width);
    case Op::kRmsNorm:
      return rms_norm(pass, in(0), step.weight, width);
    case Op::kHeadNorm:
      return rms_norm(pass, in(0), step.weight, pass.config.head_dim);
    case Op::kLinear:
      return linear(pass, in(0), step.weight, step.bias);
    case Op::kRope:
      return rope(pass, in(0));
    case Op::kAttention:
      return attention(pass, in(0), in(1), in(2), step.window);
    case Op::kSwiglu:
      return swiglu(pass, in(0), in(1));
    case Op::kAdd:
      return add(pass, in(0), in(1));
    case Op::kLogits:
      return cross_entropy(pass, in(0), step.weight);
  }
  CHECK(false, "no step {}", static_cast<int>(step.op));
}

// Runs a segment; values that nothing after it reads are dropped (autograd keeps what it needs).
void run_segment(Pass& pass, const model::Decoder& decoder, const Segment& segment, Values& values,
                 const Tensor& anchor) {
  for (size_t i = segment.begin; i < segment.end; ++i) {
    values[decoder.steps[i].out] = run_step(pass, decoder, decoder.steps[i], values, anchor);
  }
  std::erase_if(values, [&](const auto& entry) {
    return std::ranges::find(segment.out, entry.first) == segment.out.end() &&
           segment.end < decoder.steps.size();
  });
}

// A layer whose inside is forgotten after forward and computed again before its gradient (Chen et al. 2016).
struct Recompute : torch::autograd::Function<Recompute> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, Pass* pass, const model::Decoder* decoder,
                        const Segment* segment) {
    ctx->saved_data["pass"] = reinterpret_cast<int64_t>(pass);
    ctx->saved_data["decoder"] = reinterpret_cast<int64_t>(decoder);
    ctx->saved_data["segment"] = reinterpret_cast<int64_t>(segment);
    ctx->save_for_backward({x});
    const torch::NoGradGuard no_grad;
    Values values{{segment->in[0], x}};
    run_segment(*pass, *decoder, *segment, values, {});
    return values.at(segment->out[0]);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    // NOLINTBEGIN(performance-no-int-to-ptr): autograd carries tensors and numbers
    auto* pass = reinterpret_cast<Pass*>(ctx->saved_data["pass"].toInt());
    auto* decoder = reinterpret_cast<const model::Decoder*>(ctx->saved_data["decoder"].toInt());
    auto* segment = reinterpret_cast<const Segment*>(ctx->saved_data["segment"].toInt());
    // NOLINTEND(performance-no-int-to-ptr)
    Tensor x = ctx->get_saved_variables()[0].detach();
    x.requires_grad_(true);
    {
      const torch::AutoGradMode with_grad(true);
      Values values{{segment->in[0], x}};
      run_segment(*pass, *decoder, *segment, values, {});
      torch::autograd::backward({values.at(segment->out[0])}, {dy[0]});
    }
    return {x.grad(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

struct Network::State {
  const model::Decoder& decoder;
  Options options;
  std::vector<Segment> segments;
  kernels::RopeTable rope;
  Pass pass;

  State(const model::Decoder& decoder, Parameters& parameters, Options options, ThreadPool& pool)
      : decoder(decoder),
        options(options),
        segments(segments_of(decoder)),
        rope(model::rope_frequencies(decoder.config), decoder.config.max_positions),
        pass{.parameters = parameters, .pool = pool, .config = decoder.config, .rope = rope} {}

  void fill(const Sequences& input) {
    CHECK(std::ssize(input.tokens) == input.sequences * (input.length + 1),
          "{} tokens for {} sequences of {}", input.tokens.size(), input.sequences, input.length);
    CHECK(input.length <= decoder.config.max_positions, "sequences of {}, at most {}", input.length,
          decoder.config.max_positions);
    if (pass.B != input.sequences || pass.T != input.length) {
      pass.B = input.sequences, pass.T = input.length;
      const int64_t blocks = (pass.T + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
      const auto rows = static_cast<size_t>(pass.rows());
      pass.ids.resize(rows), pass.targets.resize(rows), pass.positions.resize(rows);
      pass.block_table.resize(static_cast<size_t>(pass.B * blocks));
      for (size_t i = 0; i < pass.block_table.size(); ++i) pass.block_table[i] = static_cast<int32_t>(i);
      pass.sequences.clear();
      for (int64_t b = 0; b < pass.B; ++b) {
        pass.sequences.push_back({pass.block_table.data() + b * blocks, b * pass.T, pass.T, 0});
        for (int64_t t = 0; t < pass.T; ++t)
          pass.positions[static_cast<size_t>(b * pass.T + t)] = static_cast<int32_t>(t);
      }
    }
    for (int64_t b = 0; b < pass.B; ++b) {
      const auto row =
          input.tokens.subspan(static_cast<size_t>(b * (pass.T + 1)), static_cast<size_t>(pass.T + 1));
      std::copy(row.begin(), row.end() - 1, pass.ids.begin() + b * pass.T);
      std::copy(row.begin() + 1, row.end(), pass.targets.begin() + b * pass.T);
    }
    pass.loss = 0;
  }

  Tensor forward(const Tensor& anchor) {
    Values values;
    for (const Segment& segment : segments) {
      const bool layer = decoder.steps[segment.begin].layer >= 0;
      if (pass.with_gradient && options.recompute && layer) {
        CHECK(segment.in.size() == 1 && segment.out.size() == 1, "a layer with {} inputs and {} outputs",
              segment.in.size(), segment.out.size());
        Tensor y = Recompute::apply(values.at(segment.in[0]), &pass, &decoder, &segment);
        values.clear();
        values[segment.out[0]] = y;
      } else {
        run_segment(pass, decoder, segment, values, anchor);
      }
    }
    return values.at(decoder.steps.back().out);
  }
};

Network::Network(const model::Decoder& decoder, Parameters& parameters, Options options, ThreadPool& pool)
    : state_(std::make_unique<State>(decoder, parameters, options, pool)) {
  at::set_num_threads(1);  // the kernels' pool has the cores; torch itself only adds and copies
#ifdef __GLIBC__
  // Every step allocates the same tensors: keep their memory instead of asking the kernel for zeroed pages
  // again.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}
Network::~Network() = default;

double Network::train(const Sequences& input) {
  State& s = *state_;
  s.fill(input);
  s.pass.with_gradient = true;
  s.pass.logprobs = nullptr;
  const torch::AutoGradMode with_grad(true);
  const Tensor anchor = torch::empty({0}, torch::TensorOptions().requires_grad(true));
  s.forward(anchor).backward();
  return s.pass.loss;
}

double Network::evaluate(const Sequences& input, float* logprobs) {
  State& s = *state_;
  s.fill(input);
  s.pass.with_gradient = false;
  s.pass.logprobs = logprobs;
  const torch::NoGradGuard no_grad;
  s.forward(torch::empty({0}));
  return s.pass.loss;
}

double flop_per_token(const model::Decoder& decoder, int64_t length) {
  double flop = 0;
  for (const Step& step : decoder.steps) {
    if (step.op == Op::kLinear || step.op == Op::kLogits) {
      const auto& shape = decoder.weights[static_cast<size_t>(step.weight)].shape;
      flop += 6.0 * static_cast<double>(shape[0] * shape[1]);  // y, dx and dw: 2 each
    } else if (step.op == Op::kAttention) {
      // Scores and sums over half the positions on average, twice that again for the gradient.
      flop += 6.0 * static_cast<double>(decoder.config.q_width() * length);
    }
  }
  return flop;
}

}  // namespace flywheel::train
