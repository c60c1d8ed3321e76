// The row program: log-probability and entropy of a row -> its loss, its coefficients and its metrics. Pure maths, no
// torch: the CPU ops and the CUDA kernels include it. One branch for each entry of LOSSES and KLS in
// kernels/univg_kernels/policy_loss/table.py, whose comments give the formulas.
//
// Rows that do not depend on each other: read_row, score_row with Response{}, then own_slope() is a = dL/dlogp.
// Else, response by response: add_row for its rows, finish, score_row for its rows, and with the sum of their
// response_slope: a = own_slope() + share()·sum. Rows of weight 0 do not count: they are to be left out, unread.
#pragma once
#include <cfloat>
#include <cmath>

#include "exponential.h"
#include "row_types.h"

namespace univg {

// NaN stays NaN in these, as in torch.
template <class real>
UNIVG_HD real clamp(real x, real low, real high) {
  return x < low ? low : (x > high ? high : x);
}
template <class real>
UNIVG_HD real at_most(real x, real high) {
  return x > high ? high : x;
}
template <class real>
UNIVG_HD bool within(real x, real low, real high) {
  return x >= low && x <= high;
}

// The sampler's ratio, cut or dropped outside of its bounds.
template <class real>
UNIVG_HD real corrected(real ratio, const Program<real>& p) {
  const real low = p[importance_clip_min], high = p[importance_clip_max];
  if (p.importance == Importance::token_mask || p.importance == Importance::sequence_mask)
    return within(ratio, low, high) ? ratio : real(0);
  return clamp(ratio, low, high);
}

// vespo keeps the logarithms of its weights within [ln 1e-8, 20].
template <class real>
UNIVG_HD real vespo_bounded(real logarithm) {
  return clamp(logarithm, real(-18.420680743952367), real(20));
}
template <class real>
UNIVG_HD real vespo_log(real ratio) {
  return vespo_bounded(std::log(ratio));
}

template <class real>
UNIVG_HD Row<real> read_row(const RowInputs<real>& in, const Program<real>& p, int64_t t, real logp, real entropy) {
  Row<real> row;
  row.logp = logp;
  row.entropy = entropy;
  row.advantage = in.advantage[t];
  row.phi = in.phi[t];
  row.weight = in.weight[t];
  row.entropy_weight = in.entropy_weight ? in.entropy_weight[t] : real(0);
  row.ref = in.ref_logp ? in.ref_logp[t] : logp;
  const real old = in.old_logp ? in.old_logp[t] : logp;
  row.difference = logp - old;
  const real sampling = in.sampling_logp ? in.sampling_logp[t] : old;
  const real apart = old - sampling, away = sampling - logp;
  row.sampling_difference = apart == apart && in.sampling_logp ? apart : real(0);
  constexpr real largest = real(sizeof(real) == sizeof(double) ? DBL_MAX : FLT_MAX);
  row.drift = away == away ? clamp(away, -largest, largest) : real(0);
  row.high_entropy = !in.entropy_threshold || entropy >= *in.entropy_threshold;
  row.importance = 1;
  if (p.importance == Importance::token_given || p.importance == Importance::sequence_given)
    row.importance = in.importance[t];
  else if (p.importance == Importance::token_truncate || p.importance == Importance::token_mask)
    row.importance = corrected(exp_of(row.sampling_difference), p);
  return row;
}

// gmpo: the log-ratio, clipped on the side that A pushes to, and whether it still moves.
template <class real>
UNIVG_HD real one_sided(const Row<real>& row, const Program<real>& p, bool& moves) {
  const real bound = row.advantage > 0 ? p[epsilon_high] : -p[epsilon_low];
  moves = row.advantage > 0 ? row.difference <= bound : row.difference >= bound;
  return moves || row.difference != row.difference ? row.difference : bound;
}

template <class real>
UNIVG_HD void add_row(ResponseSums& sums, const Row<real>& row, const Program<real>& p) {
  sums.size += 1;
  sums.difference += row.difference;
  sums.near_difference += clamp(row.difference, real(-20), real(20));
  sums.drift += row.drift;
  sums.sampling += row.sampling_difference;
  sums.high_entropy += row.high_entropy;
  if (p.loss == LossType::vespo) sums.log_importance += vespo_log(row.importance);
  if (p.loss == LossType::gmpo) {
    bool moves;
    sums.log_importance += std::log(row.importance);
    sums.one_sided += one_sided(row, p, moves) * real(row.high_entropy);
  }
}

template <class real>
UNIVG_HD Response<real> finish(const ResponseSums& sums, const Program<real>& p) {
  Response<real> r;
  const double size = sums.size > 1 ? sums.size : 1, high = sums.high_entropy > 1 ? sums.high_entropy : 1;
  r.size = real(size);
  r.mean_difference = real(sums.difference / size);
  r.near_difference = real(sums.near_difference);
  r.drift = real(sums.drift / size);
  if (p.sums_sampling()) r.importance = corrected(exp_of(real(sums.sampling / (p.importance_mean ? size : 1))), p);
  r.log_importance = real(p.loss == LossType::gmpo ? sums.log_importance / size : sums.log_importance);
  r.high_entropy = real(high);
  r.mean_one_sided = real(sums.one_sided / high);
  return r;
}

// A policy term and its slopes by what it depends on.
template <class real>
struct Term {
  real value, by_logp = 0, by_log_ratio = 0, by_mean = 0;
};

template <class real>
UNIVG_HD Term<real> clipped_surrogate(real ratio, real advantage, const Program<real>& p) {
  const real slope = -ratio * advantage;
  const real free = at_most(ratio, p[delta]) * advantage;
  const real clipped = clamp(ratio, p[clip_low], p[clip_high]) * advantage;
  if (free <= clipped) return {-free, 0, ratio <= p[delta] ? slope : real(0)};
  return {-clipped, 0, within(ratio, p[clip_low], p[clip_high]) ? slope : real(0)};
}

template <class real>
UNIVG_HD Term<real> cispo(real ratio, const Row<real>& row, const Program<real>& p) {
  const real slope = -clamp(ratio, p[clip_low], p[clip_high]) * row.advantage;
  return {slope * row.logp, slope};
}

template <class real>
UNIVG_HD Term<real> sapo(real ratio, real advantage, const Program<real>& p) {
  const real tau = advantage > 0 ? p[sapo_temperature_pos] : p[sapo_temperature_neg];
  const real x = tau * (ratio - 1), s = 1 / (1 + exp_of(-x)), rest = 1 / (1 + exp_of(x));
  return {-4 / tau * s * advantage, 0, rest == 0 ? real(0) : -4 * s * rest * ratio * advantage};
}

template <class real>
UNIVG_HD Term<real> vespo(real importance, const Row<real>& row, const Response<real>& r, const Program<real>& p) {
  const bool good = row.advantage >= 0;
  const real k = good ? p[vespo_k_pos] : p[vespo_k_neg], lambda = good ? p[vespo_lambda_pos] : p[vespo_lambda_neg];
  const real log_importance = p.importance_of_response() ? vespo_log(importance) : r.log_importance;
  const real log_w = vespo_bounded(r.near_difference + log_importance);
  const real slope = -exp_of(lambda + k * log_w - lambda * exp_of(log_w)) * row.advantage;
  return {slope * row.logp, slope};
}

template <class real>
UNIVG_HD Term<real> gmpo(const Row<real>& row, const Response<real>& r) {
  const real value = -exp_of(r.mean_one_sided) * row.advantage;
  return {value, 0, 0, value};
}

template <class real>
UNIVG_HD Term<real> policy_term(real ratio, real importance, const Row<real>& row, const Response<real>& r,
                                const Program<real>& p) {
  switch (p.loss) {
    case LossType::grpo:
    case LossType::bnpo:
    case LossType::dr_grpo:
    case LossType::dapo:
    case LossType::luspo: return clipped_surrogate(ratio, row.advantage, p);
    case LossType::cispo: return cispo(ratio, row, p);
    case LossType::sapo: return sapo(ratio, row.advantage, p);
    case LossType::vespo: return vespo(importance, row, r, p);
    case LossType::gmpo: return gmpo(row, r);
    case LossType::reinforce: return {-row.advantage * row.logp, -row.advantage};
  }
  return {0};
}

template <class real>
struct KLTerm {
  real value, slope;  // slope by logp
};

template <class real>
UNIVG_HD KLTerm<real> k3(real d, bool clamped) {
  const real inner = clamped ? clamp(d, real(-20), real(20)) : d;
  const real value = expm1_of(inner) - inner;
  if (!clamped) return {value, -expm1_of(d)};
  return {clamp(value, real(-10), real(10)), inner == d && value <= 10 ? -expm1_of(d) : real(0)};
}

template <class real>
UNIVG_HD KLTerm<real> kl_term(real logp, real ref, const Program<real>& p) {
  const real d = logp - ref;
  switch (p.kl) {
    case KL::none: return {0, 0};
    case KL::k1: return {d, 1};
    case KL::k2: return {d * d / 2, d};
    case KL::k3: return k3(-d, p.k3_clamp);
    case KL::k1_straight: return {d, d};
    case KL::k3_straight: return {k3(-d, p.k3_clamp).value, d};
  }
  return {0, 0};
}

// What multiplies the policy term: importance ratio, entropy mask, off-policy mask.
template <class real>
UNIVG_HD real gate_of(real importance, const Row<real>& row, const Response<real>& r, const Program<real>& p) {
  if (p.off_policy_mask && row.advantage < 0 && !(r.drift <= p[off_policy_threshold])) return 0;
  switch (p.loss) {
    case LossType::vespo: return row.high_entropy;  // has the ratio in its weight
    case LossType::gmpo: return p.importance_of_response() ? importance : exp_of(r.log_importance);
    default: return importance * real(row.high_entropy);
  }
}

template <class real>
UNIVG_HD void mark_clipped(Score<real>& s, const Row<real>& row, const Program<real>& p) {
  real seen = p.loss == LossType::gmpo ? exp_of(row.difference) : s.ratio;
  if (p.loss != LossType::gmpo && p.loss != LossType::cispo) seen = at_most(seen, p[delta]);
  s.low = seen < p[clip_low] && row.advantage < 0;
  s.high = seen > p[clip_high] && row.advantage > 0;
}

// L_t = weight·(phi·gate·policy + beta·kl) - entropy_weight·H
template <class real>
UNIVG_HD Score<real> score_row(const Row<real>& row, const Response<real>& r, const Program<real>& p) {
  Score<real> s;
  const real log_ratio = p.level == Level::token ? row.difference : r.mean_difference;
  const bool moves = within(log_ratio, p[log_ratio_min], p[log_ratio_max]);
  s.ratio = exp_of(clamp(log_ratio, p[log_ratio_min], p[log_ratio_max]));
  s.importance = p.sums_sampling() ? r.importance : row.importance;
  const real gate = gate_of(s.importance, row, r, p);
  s.dropped = gate == 0;
  Term<real> policy{0};
  if (!s.dropped) policy = policy_term(s.ratio, s.importance, row, r, p);
  const KLTerm<real> kl = kl_term(row.logp, row.ref, p);
  s.kl = kl.value;
  const real u = row.weight * row.phi * gate;
  const real v = row.weight * p[beta] * (p.kl_times_importance ? s.importance : real(1));
  const real c = p.kl_times_ratio ? s.ratio : real(1);
  s.b = row.high_entropy ? -row.entropy_weight : real(0);
  s.loss = u * policy.value;
  s.direct = u * policy.by_logp;
  s.ratio_slope = moves ? u * policy.by_log_ratio : real(0);
  if (p.kl != KL::none) {
    s.loss += v * c * kl.value;
    s.direct += v * c * kl.slope;
    if (p.kl_times_ratio && moves) s.ratio_slope += v * c * kl.value;
  }
  if (row.entropy_weight != 0) s.loss -= row.entropy_weight * real(row.high_entropy) * row.entropy;
  s.response_slope = u * policy.by_mean;
  if (p.level == Level::sequence) {
    s.response_slope += s.ratio_slope;
    s.ratio_slope = 0;
  }
  if (s.loss != s.loss) s.direct = s.loss;  // what lost its loss must not look like a row without a gradient
  mark_clipped(s, row, p);
  return s;
}

// d (the mean over the response)/d logp of this row.
template <class real>
UNIVG_HD real share(const Row<real>& row, const Response<real>& r, const Program<real>& p) {
  if (p.loss != LossType::gmpo) return 1 / r.size;
  bool moves;
  one_sided(row, p, moves);
  return moves && row.high_entropy ? 1 / r.high_entropy : real(0);
}

}  // namespace univg
