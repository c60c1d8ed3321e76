// The nouns of the row program: what a call asks for, what a row brings along, what becomes of it. No torch.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define UNIVG_HD __host__ __device__
#else
#define UNIVG_HD
#endif

namespace univg {

enum class LossType { grpo, bnpo, dr_grpo, dapo, luspo, cispo, sapo, vespo, gmpo, reinforce };
enum class Level { token, sequence, sequence_token };
enum class KL { none, k1, k2, k3, k1_straight, k3_straight };
enum class Importance {
  none,
  token_given,
  sequence_given,
  token_truncate,
  token_mask,
  sequence_truncate,
  sequence_mask
};

// SCALARS of kernels/univg_kernels/_program.py, in its order.
enum Scalar {
  epsilon_low,
  epsilon_high,
  clip_low,
  clip_high,
  delta,
  log_ratio_min,
  log_ratio_max,
  sapo_temperature_pos,
  sapo_temperature_neg,
  vespo_k_pos,
  vespo_lambda_pos,
  vespo_k_neg,
  vespo_lambda_neg,
  beta,
  importance_clip_min,
  importance_clip_max,
  off_policy_threshold,
  num_scalars
};

template <class real>
struct Program {
  LossType loss;
  Level level;
  KL kl;
  Importance importance;
  bool k3_clamp, kl_times_ratio, kl_times_importance, importance_mean, off_policy_mask;
  real scalars[num_scalars];

  UNIVG_HD real operator[](Scalar name) const { return scalars[name]; }
  UNIVG_HD bool importance_of_response() const {
    return importance == Importance::sequence_given || sums_sampling();
  }
  UNIVG_HD bool sums_sampling() const {
    return importance == Importance::sequence_truncate || importance == Importance::sequence_mask;
  }
  // Whether a row's gradient needs nothing of the other rows of its response.
  UNIVG_HD bool rows_are_alone() const {
    return level == Level::token && loss != LossType::vespo && loss != LossType::gmpo && !off_policy_mask &&
           !sums_sampling();
  }
  // Whether a row's gradient needs the slopes of the other rows of its response, too.
  UNIVG_HD bool spreads() const { return level == Level::sequence || loss == LossType::gmpo; }
};

// [N] each; all but the first three may be null. entropy_threshold: one value.
template <class real>
struct RowInputs {
  const real *advantage, *phi, *weight, *entropy_weight, *entropy_threshold, *old_logp, *ref_logp, *sampling_logp,
      *importance;
  UNIVG_HD bool counts(int64_t t) const { return weight[t] != 0; }
};

// Coefficients that a row hands to its head: a = dL/dlogp, b = dL/dentropy.
template <class real>
struct Coefficients {
  real a = 0, b = 0;
  UNIVG_HD bool active() const { return a != 0 || b != 0; }
};

// A row before any loss has looked at it.
template <class real>
struct Row {
  real logp, entropy, advantage, phi, weight, entropy_weight;
  real ref;                  // logp where there is no reference
  real difference;           // logp - old_logp
  real sampling_difference;  // old_logp - sampling_logp; 0 where the sampler does not know
  real drift;                // (sampling_logp, or old_logp) - logp; likewise
  real importance;           // of this row alone, or given
  bool high_entropy;
};

// Sums over the rows of a response that count.
struct ResponseSums {
  double size = 0, difference = 0, near_difference = 0, drift = 0, sampling = 0, log_importance = 0, high_entropy = 0,
         one_sided = 0;
};

// What a row must know of its response; as it stands, of one that no row depends on.
template <class real>
struct Response {
  real size = 1, mean_difference = 0, near_difference = 0, drift = 0, importance = 1, log_importance = 0,
       high_entropy = 1, mean_one_sided = 0;
};

template <class real>
struct Score {
  real loss, kl, ratio, importance;
  real direct;          // dL/dlogp, not through a ratio
  real ratio_slope;     // dL/d log-ratio of this row
  real response_slope;  // dL/d the mean over the response that its rows share
  real b;               // dL/dentropy
  bool low, high, dropped;
  UNIVG_HD real own_slope() const { return direct + ratio_slope; }
};

}  // namespace univg
