// DeepSpeed's optimizers and schedulers, and those of torch.optim that are here, as ours.
#include <algorithm>

#include "train/config.h"
#include "train/deepspeed_section_internal.h"

namespace flywheel::train {
namespace {

using Section = DeepSpeedSection;

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return text;
}

}  // namespace

void read_deepspeed_optimizer(const Section& root, const TrainConfig& base, TrainConfig& c) {
  if (!root.has("optimizer")) return root.note("optimizer: none in the file; the training config's is used");
  const Section section = root.below("optimizer");
  if (!section.has("type")) return root.note("optimizer.type: none; the training config's optimizer is used");
  const std::string type = section.word("type", ""), kind = lower(type);
  const Section params = section.below("params");
  if (params.has("max_grad_norm"))
    params.refuse("max_grad_norm", "is no parameter of an optimizer; say gradient_clipping");
  OptimizerConfig& o = c.optimizer;
  const auto common = [&](double lr, std::vector<double> betas, double decay) {
    o.lr = params.number("lr", lr, base.optimizer.lr);
    o.betas = params.pair("betas", std::move(betas), base.optimizer.betas);
    o.epsilon = params.number("eps", 1e-8, base.optimizer.epsilon);
    o.weight_decay = params.number("weight_decay", decay, base.optimizer.weight_decay);
  };
  if (kind == "adam" || kind == "adamw") {
    params.only({"lr", "betas", "eps", "weight_decay", "bias_correction", "amsgrad", "adam_w_mode",
                 "torch_adam", "fused", "fp32_optimizer_states", "set_grad_none"},
                type);
    common(1e-3, {0.9, 0.999}, 0);
    const bool decoupled = params.boolean("adam_w_mode", true) || kind == "adamw";
    o.type = decoupled ? OptimizerType::kAdamW : OptimizerType::kAdam;
    if (params.boolean("amsgrad", false)) params.refuse("amsgrad", "is not there");
    if (!params.boolean("bias_correction", true)) params.refuse("bias_correction", "is always made");
    if (!params.boolean("fp32_optimizer_states", true))
      params.refuse("fp32_optimizer_states", "state is f32; optimizer.type adamw_8bit is smaller still");
    for (const char* key : {"torch_adam", "fused", "set_grad_none"}) {
      if (params.has(key)) params.note(params.name(key) + " has no effect: there is one AdamW, fused");
    }
  } else if (kind == "lion") {
    params.only({"lr", "betas", "weight_decay", "set_grad_none"}, type);
    common(1e-3, {0.9, 0.999}, 0);
    o.type = OptimizerType::kLion;
  } else if (kind == "muon") {
    params.only({"lr", "muon_lr", "adam_lr", "momentum", "betas", "eps", "weight_decay", "ns_method",
                 "adam_w_mode", "torch_adam"},
                type);
    common(0.02, {0.9, 0.95}, 0);
    o.type = OptimizerType::kMuon;
    o.muon.scale = MuonScaleType::kShape;
    o.muon.momentum = params.number("momentum", 0.95);
    const double lr = params.number("muon_lr", o.lr, o.lr);
    const double adam = params.number("adam_lr", params.has("lr") ? o.lr : 3e-4, o.lr);
    o.lr = lr;
    o.muon.adamw_lr_scale = adam / lr;
    if (!params.has("eps")) o.epsilon = 1e-10;
    if (params.has("ns_method"))
      params.note(params.name("ns_method") + " has no effect: Newton-Schulz steps are Jordan's");
    if (!params.boolean("adam_w_mode", true))
      params.refuse("adam_w_mode", "Muon's Adam decays as AdamW does");
    params.note(
        "optimizer.type Muon: optimizer.muon.adamw of the training config says which matrices go to AdamW");
  } else if (type == "SGD") {
    params.only({"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach",
                 "differentiable", "fused"},
                type);
    o.type = OptimizerType::kSgd;
    o.lr = params.number("lr", 1e-3, base.optimizer.lr);
    o.weight_decay = params.number("weight_decay", 0, base.optimizer.weight_decay);
    o.sgd = {.momentum = params.number("momentum", 0),
             .dampening = params.number("dampening", 0),
             .nesterov = params.boolean("nesterov", false)};
    if (params.boolean("maximize", false)) params.refuse("maximize", "a loss is minimized");
  } else if (type == "Adafactor") {
    params.only({"lr", "beta2_decay", "eps", "d", "weight_decay", "foreach", "maximize"}, type);
    o.type = OptimizerType::kAdafactor;
    o.lr = params.number("lr", 1e-2, base.optimizer.lr);
    o.weight_decay = params.number("weight_decay", 0, base.optimizer.weight_decay);
    o.adafactor.relative_step = true;
    o.adafactor.decay_rate = params.number("beta2_decay", -0.8);
    o.adafactor.clip_threshold = params.number("d", 1);
    if (params.has("eps")) {
      const std::vector<double> eps = params.pair("eps", {}, {});
      o.adafactor.epsilon1 = eps[0], o.adafactor.epsilon2 = eps[1];
    }
    if (params.boolean("maximize", false)) params.refuse("maximize", "a loss is minimized");
  } else {
    const std::vector<std::string> known = {"Adam", "AdamW", "Lion", "Muon", "SGD", "Adafactor"};
    const std::string near = nearest_name(type, known);
    section.refuse("type", fmt::format("\"{}\" is not there; {}", type,
                                       near.empty() ? "there are Adam, AdamW, Lion, Muon, SGD and Adafactor"
                                                    : "did you mean " + near + "?"));
  }
  // DeepSpeed decays what it is given; what is given there without groups is every parameter.
  if (o.weight_decay > 0 && !o.no_decay.has_value() && o.groups.empty()) {
    o.no_decay.emplace();
    root.note(
        "optimizer.params.weight_decay: of every weight, as there; optimizer.no_decay in the training "
        "config takes some out");
  }
}

namespace {

WarmupShape warmup_shape(const Section& params) {
  return params.word("warmup_type", "log", {"log", "linear"}) == "log" ? WarmupShape::kLog
                                                                       : WarmupShape::kLinear;
}

// A number, or a list of one: DeepSpeed takes a list with a value for each of its groups.
double of_one_group(const Section& params, const Json& all, const std::string& key, double fallback) {
  if (!all.contains(key) || !all[key].is_array()) return params.number(key, fallback);
  if (all[key].size() != 1 || !all[key][0].is_number())
    params.refuse(key, "must be one number: parameter groups share the schedule, optimizer.groups scales it");
  return all[key][0].get<double>();
}

}  // namespace

void read_deepspeed_schedule(const Section& root, const Json& json, const TrainConfig& base, TrainConfig& c) {
  const Section section = root.below("scheduler");
  if (!section.has("type")) return root.note("scheduler: none in the file; the training config's is used");
  const std::string type = section.word("type", "");
  const Section params = section.below("params");
  static const Json kNone = Json::object();
  const Json& all = section.has("params") ? json["scheduler"]["params"] : kNone;
  ScheduleConfig& s = c.schedule;
  s = {};
  WarmupConfig& w = s.warmup;
  const auto warmup = [&](const std::vector<std::string>& known) {
    params.only(known, type);
    w.num_steps = params.integer("warmup_num_steps", 1000, std::max<int64_t>(1, base.optimizer.warmup_steps));
    w.type = warmup_shape(params);
    if (w.num_steps <= 0) params.refuse("warmup_num_steps", "must be at least 1");
    if (std::ranges::find(known, "total_num_steps") != known.end()) {
      if (!params.has("total_num_steps")) params.refuse("total_num_steps", type + " needs it");
      w.total_steps = params.integer("total_num_steps", 0, base.steps);
    }
  };
  if (type == "WarmupLR" || type == "WarmupDecayLR") {
    const bool decays = type == "WarmupDecayLR";
    std::vector<std::string> known = {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type",
                                      "last_batch_iteration"};
    if (decays) known.emplace_back("total_num_steps");
    warmup(known);
    s.type = decays ? ScheduleType::kWarmupDecay : ScheduleType::kWarmup;
    w.min_lr = params.says("warmup_min_lr") ? of_one_group(params, all, "warmup_min_lr", 0)
                                            : params.number("warmup_min_lr", 0, 0);
    w.max_lr = params.says("warmup_max_lr")
                   ? of_one_group(params, all, "warmup_max_lr", 0)
                   : params.number("warmup_max_lr", decays ? 1e-3 : c.optimizer.lr, c.optimizer.lr);
    if (w.max_lr <= 0) params.refuse("warmup_max_lr", "must be above 0");
  } else if (type == "WarmupCosineLR") {
    warmup({"total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio", "warmup_type",
            "last_batch_iteration"});
    s.type = ScheduleType::kWarmupCosine;
    w.min_ratio = params.number("warmup_min_ratio", 0);
    w.cos_min_ratio = params.number("cos_min_ratio", 1e-4);
  } else if (type == "LRRangeTest") {
    params.only({"lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate",
                 "lr_range_test_staircase", "last_batch_iteration"},
                type);
    s.type = ScheduleType::kRangeTest;
    s.range_test = {.min_lr = of_one_group(params, all, "lr_range_test_min_lr", 1e-3),
                    .step_size = params.integer("lr_range_test_step_size", 2000),
                    .step_rate = params.number("lr_range_test_step_rate", 1),
                    .staircase = params.boolean("lr_range_test_staircase", false)};
  } else if (type == "OneCycle") {
    params.only(
        {"cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size",
         "cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size", "cycle_momentum",
         "cycle_min_mom", "cycle_max_mom", "decay_mom_rate", "last_batch_iteration"},
        type);
    for (const char* key : {"cycle_min_lr", "cycle_max_lr"}) {
      if (!params.has(key)) params.refuse(key, "OneCycle needs it");
    }
    s.type = ScheduleType::kOneCycle;
    OneCycleConfig& o = s.one_cycle;
    o.min_lr = of_one_group(params, all, "cycle_min_lr", 0);
    o.max_lr = of_one_group(params, all, "cycle_max_lr", 0);
    o.decay_lr_rate = params.number("decay_lr_rate", 0);
    o.first_step_size = params.integer("cycle_first_step_size", 2000);
    if (params.has("cycle_second_step_size"))
      o.second_step_size = params.integer("cycle_second_step_size", 0, o.first_step_size);
    o.first_stair_count = params.integer("cycle_first_stair_count", 0);
    if (params.has("cycle_second_stair_count"))
      o.second_stair_count = params.integer("cycle_second_stair_count", 0, o.first_stair_count);
    o.decay_step_size = params.integer("decay_step_size", 0);
    // Optimizers without betas have no momentum to turn, there as here.
    o.cycle_momentum = params.boolean("cycle_momentum", true) && c.optimizer.type != OptimizerType::kSgd &&
                       c.optimizer.type != OptimizerType::kAdafactor;
    o.min_momentum = of_one_group(params, all, "cycle_min_mom", 0.8);
    o.max_momentum = of_one_group(params, all, "cycle_max_mom", 0.9);
    o.decay_momentum_rate = params.number("decay_mom_rate", 0);
  } else {
    const std::vector<std::string> known = {"WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "LRRangeTest",
                                            "OneCycle"};
    const std::string near = nearest_name(type, known);
    section.refuse("type",
                   fmt::format("\"{}\" is not one of DeepSpeed's schedulers; {}", type,
                               near.empty() ? "they are LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, "
                                              "WarmupCosineLR; others: schedule in the training config"
                                            : "did you mean " + near + "?"));
  }
  if (params.integer("last_batch_iteration", -1) != -1)
    params.refuse("last_batch_iteration", "a resumed run knows where it was");
}

}  // namespace flywheel::train
