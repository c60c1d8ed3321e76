// What every policy op is called with: its Program and its row tensors.
#pragma once
#include <string>
#include <vector>

#include "common.h"
#include "row_program.h"

namespace univg {

inline constexpr const char* kLosses[] = {"grpo",  "bnpo", "dr_grpo", "dapo", "luspo",
                                          "cispo", "sapo", "vespo",   "gmpo", "reinforce"};
inline constexpr const char* kLevels[] = {"token", "sequence", "sequence_token"};
inline constexpr const char* kKLs[] = {"none", "k1", "k2", "k3", "k1+", "k3+"};
inline constexpr const char* kImportances[] = {"none",       "token_given",       "sequence_given", "token_truncate",
                                               "token_mask", "sequence_truncate", "sequence_mask"};

// The place of `name` among `names` is its value in the enum.
template <class Enum, size_t count>
Enum parse(const char* what, const char* const (&names)[count], const std::string& name) {
  std::string expected;
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    expected += (i ? ", " : "") + std::string(names[i]);
  }
  STD_TORCH_CHECK(false, what, ": expected one of ", expected, ", got ", name);
}

// The arguments that every policy op ends with, as _program.py has them.
#define UNIVG_PROGRAM_PARAMETERS                                                                           \
  const std::string &loss_type, const std::string &level, const std::string &kl,                           \
      const std::string &importance, bool k3_clamp, bool kl_times_ratio, bool kl_times_importance,         \
      bool importance_mean, bool off_policy_mask, const std::vector<double>&scalars
#define UNIVG_PROGRAM_ARGUMENTS                                                                            \
  loss_type, level, kl, importance, k3_clamp, kl_times_ratio, kl_times_importance, importance_mean,        \
      off_policy_mask, scalars

inline Program<double> parse_program(UNIVG_PROGRAM_PARAMETERS) {
  UNIVG_CHECK(scalars.size() == num_scalars, "scalars: expected ", int(num_scalars), " numbers, got ", scalars.size());
  Program<double> p{parse<LossType>("loss_type", kLosses, loss_type),
                    parse<Level>("level", kLevels, level),
                    parse<KL>("kl", kKLs, kl),
                    parse<Importance>("importance", kImportances, importance),
                    k3_clamp,
                    kl_times_ratio,
                    kl_times_importance,
                    importance_mean,
                    off_policy_mask,
                    {}};
  for (int i = 0; i < num_scalars; ++i) p.scalars[i] = scalars[i];
  return p;
}

// The same program with the numbers in the precision of the maths.
template <class real>
Program<real> cast_program(const Program<double>& p) {
  Program<real> q{p.loss,           p.level,               p.kl,              p.importance,      p.k3_clamp,
                  p.kl_times_ratio, p.kl_times_importance, p.importance_mean, p.off_policy_mask, {}};
  for (int i = 0; i < num_scalars; ++i) q.scalars[i] = static_cast<real>(p.scalars[i]);
  return q;
}

// The row tensors of a policy op, unchecked: RowInputs of policy_loss/cpp_impl.py.
struct RowTensors {
  Tensor advantage, phi, weight;
  std::optional<Tensor> entropy_weight, entropy_threshold, old_logp, ref_logp, sampling_logp, importance;
};

#define UNIVG_ROW_PARAMETERS                                                                               \
  const Tensor &advantage, const Tensor &phi, const Tensor &weight,                                        \
      const std::optional<Tensor>&entropy_weight, const std::optional<Tensor>&entropy_threshold,           \
      const std::optional<Tensor>&old_logp, const std::optional<Tensor>&ref_logp,                          \
      const std::optional<Tensor>&sampling_logp, const std::optional<Tensor>&given_importance
#define UNIVG_ROW_ARGUMENTS \
  advantage, phi, weight, entropy_weight, entropy_threshold, old_logp, ref_logp, sampling_logp, given_importance

inline void check_given(const Program<double>& p, const RowTensors& rows) {
  const bool given = p.importance == Importance::token_given || p.importance == Importance::sequence_given;
  const bool sampled = !given && p.importance != Importance::none;
  UNIVG_CHECK(!given || rows.importance, "given_importance: expected a tensor for this importance, got None");
  UNIVG_CHECK(!sampled || rows.sampling_logp, "sampling_logp: expected a tensor for this importance, got None");
}

}  // namespace univg
