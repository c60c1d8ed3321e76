// The policy losses: the row program behind the logits head, and alone.
#include <algorithm>

#include "../program.h"
#include "row_loop.h"

namespace univg {
namespace {

using MaybeTensor = std::optional<Tensor>;

template <class acc_t>
RowInputs<acc_t> pointers(const RowTensors& rows, int64_t n) {
  return {data<acc_t>(rows.advantage, n, "advantage"),
          data<acc_t>(rows.phi, n, "phi"),
          data<acc_t>(rows.weight, n, "weight"),
          data<acc_t>(rows.entropy_weight, n, "entropy_weight"),
          data<acc_t>(rows.entropy_threshold, 1, "entropy_threshold"),
          data<acc_t>(rows.old_logp, n, "old_logp"),
          data<acc_t>(rows.ref_logp, n, "ref_logp"),
          data<acc_t>(rows.sampling_logp, n, "sampling_logp"),
          data<acc_t>(rows.importance, n, "given_importance")};
}

// What is left of a row when its gradient has been made.
template <class acc_t>
struct Record {
  bool counts = false;
  acc_t entropy, difference, sampling_difference;
  Score<acc_t> score;
};

template <class acc_t>
Record<acc_t> record(const Row<acc_t>& row, const Score<acc_t>& score) {
  return {true, row.entropy, std::abs(row.difference), std::abs(row.sampling_difference), score};
}

// (loss, metrics). Sums in row order, whatever the number of threads was; the metrics are METRICS of metrics.py.
template <class acc_t>
std::tuple<Tensor, Tensor> reduce(const std::vector<Record<acc_t>>& records, const Tensor& like) {
  constexpr int kSums = 8, kMaxima = 4;
  double loss = 0, sums[kSums] = {0}, maxima[kMaxima] = {0};
  for (const auto& r : records) {
    if (!r.counts) continue;
    const Score<acc_t>& s = r.score;
    const double terms[kSums] = {1,       s.kl, r.entropy,    double(s.low), double(s.high),
                                 s.ratio, s.importance, double(s.dropped)};
    const double sizes[kMaxima] = {s.ratio, r.difference, s.importance, r.sampling_difference};
    loss += s.loss;
    for (int i = 0; i < kSums; ++i) sums[i] += terms[i];
    for (int i = 0; i < kMaxima; ++i)
      if (sizes[i] > maxima[i] || sizes[i] != sizes[i]) maxima[i] = sizes[i];  // a NaN stays
  }
  Tensor total = make<acc_t>(like, {}), metrics = make<float>(like, {kSums + kMaxima});
  *static_cast<acc_t*>(total.data_ptr()) = loss;
  float* m = static_cast<float*>(metrics.data_ptr());
  std::copy(maxima, maxima + kMaxima, std::copy(sums, sums + kSums, m));
  return {total, metrics};
}

// Loss, metrics, logp and active rows of the logits; gradients into `out` unless it is null.
std::tuple<Tensor, Tensor, Tensor, Tensor> run_head(const Tensor& logits, const Tensor* out, const Tensor& token_ids,
                                                    const RowTensors& rows, const Program<double>& program,
                                                    double scale, double cap) {
  check_given(program, rows);
  UNIVG_CHECK(program.rows_are_alone(), "grpo_head: expected a program whose rows do not depend on each other; ",
              "for others call logprob, policy_rows and logprob_backward");
  return dispatch_float(logits, "grpo_head", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using scalar_t = decltype(tag);
    using acc_t = acc_type<scalar_t>;
    const int64_t n = view_logits(logits, "grpo_head").rows;
    const RowInputs<acc_t> in = pointers<acc_t>(rows, n);
    const Program<acc_t> p = cast_program<acc_t>(program);
    Tensor logp = make<acc_t>(logits, {n}), active = make<bool>(logits, {n});
    auto* lp = data<acc_t>(logp, n, "logp");
    auto* is_active = data<bool>(active, n, "active");
    std::vector<Record<acc_t>> records(n);
    for_each_row<scalar_t>(
        logits, out, token_ids, scale, cap, "grpo_head",
        [&](int64_t t) {
          lp[t] = 0, is_active[t] = false;
          return !in.counts(t);
        },
        [&](int64_t t, const RowStats<acc_t>& stats) {
          const Row<acc_t> row = read_row(in, p, t, stats.logp, stats.entropy);
          const Score<acc_t> s = score_row(row, Response<acc_t>{}, p);
          const Coefficients<acc_t> c{s.own_slope(), s.b};
          records[t] = record(row, s);
          lp[t] = stats.logp, is_active[t] = c.active();
          return c;
        });
    auto [loss, metrics] = reduce(records, logits);
    return {loss, metrics, logp, active};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> grpo_head(const Tensor& logits, const Tensor& token_ids,
                                                             UNIVG_ROW_PARAMETERS, UNIVG_PROGRAM_PARAMETERS,
                                                             double scale, double cap, bool with_grad) {
  Tensor grad = with_grad ? torch::stable::new_empty(logits, logits.sizes()) : make<float>(logits, {0});
  auto [loss, metrics, logp, active] = run_head(logits, with_grad ? &grad : nullptr, token_ids, {UNIVG_ROW_ARGUMENTS},
                                                parse_program(UNIVG_PROGRAM_ARGUMENTS), scale, cap);
  return {loss, metrics, logp, active, grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> grpo_head_(const Tensor& logits, const Tensor& token_ids,
                                                      UNIVG_ROW_PARAMETERS, UNIVG_PROGRAM_PARAMETERS, double scale,
                                                      double cap) {
  return run_head(logits, &logits, token_ids, {UNIVG_ROW_ARGUMENTS}, parse_program(UNIVG_PROGRAM_ARGUMENTS), scale,
                  cap);
}

// The rows of one response: their records, and a = dL/dlogp, b = dL/dentropy.
template <class acc_t>
void run_response(int64_t begin, int64_t end, const RowInputs<acc_t>& in, const Program<acc_t>& p, const acc_t* logp,
                  const acc_t* entropy, Record<acc_t>* records, acc_t* a, acc_t* b) {
  const auto read = [&](int64_t t) { return read_row(in, p, t, logp[t], entropy ? entropy[t] : acc_t(0)); };
  ResponseSums sums;
  for (int64_t t = begin; t < end; ++t)
    if (in.counts(t)) add_row(sums, read(t), p);
  const Response<acc_t> response = finish(sums, p);
  double slope = 0;
  for (int64_t t = begin; t < end; ++t) {
    a[t] = b[t] = 0;
    if (!in.counts(t)) continue;
    const Row<acc_t> row = read(t);
    const Score<acc_t> s = score_row(row, response, p);
    records[t] = record(row, s);
    a[t] = s.own_slope(), b[t] = s.b;
    slope += s.response_slope;
  }
  if (!p.spreads()) return;
  for (int64_t t = begin; t < end; ++t)
    if (in.counts(t)) a[t] += share(read(t), response, p) * acc_t(slope);
}

const int64_t* checked_offsets(const Tensor& cu_seqlens, int64_t rows) {
  const int64_t count = cu_seqlens.numel() - 1;
  const int64_t* cu = data<int64_t>(cu_seqlens, count + 1, "cu_seqlens");
  bool fits = count >= 0 && cu[0] == 0 && cu[count] == rows;
  for (int64_t i = 0; i < count; ++i) fits = fits && cu[i] <= cu[i + 1];
  UNIVG_CHECK(fits, "cu_seqlens: expected offsets that begin with 0, never fall and end at ", rows);
  return cu;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> policy_rows(const Tensor& logp, const MaybeTensor& entropy,
                                                       const Tensor& cu_seqlens, UNIVG_ROW_PARAMETERS,
                                                       UNIVG_PROGRAM_PARAMETERS) {
  const RowTensors rows{UNIVG_ROW_ARGUMENTS};
  const Program<double> program = parse_program(UNIVG_PROGRAM_ARGUMENTS);
  check_given(program, rows);
  return dispatch_float(logp, "policy_rows", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t n = logp.numel();
    const RowInputs<acc_t> in = pointers<acc_t>(rows, n);
    const Program<acc_t> p = cast_program<acc_t>(program);
    const int64_t* cu = checked_offsets(cu_seqlens, n);
    const auto *lp = data<acc_t>(logp, n, "logp"), *h = data<acc_t>(entropy, n, "entropy");
    Tensor grad_logp = make<acc_t>(logp, {n}), grad_entropy = make<acc_t>(logp, {n});
    auto *a = data<acc_t>(grad_logp, n, "grad_logp"), *b = data<acc_t>(grad_entropy, n, "grad_entropy");
    std::vector<Record<acc_t>> records(n);
    torch::stable::parallel_for(0, cu_seqlens.numel() - 1, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run_response(cu[i], cu[i + 1], in, p, lp, h, records.data(), a, b);
    });
    auto [loss, metrics] = reduce(records, logp);
    return {loss, metrics, grad_logp, grad_entropy};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) {
  m.impl("grpo_head", TORCH_BOX(&grpo_head));
  m.impl("grpo_head_", TORCH_BOX(&grpo_head_));
  m.impl("policy_rows", TORCH_BOX(&policy_rows));
}

}  // namespace univg
