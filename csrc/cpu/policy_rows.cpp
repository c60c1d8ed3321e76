// The row program over log-probabilities that somebody else has made. Which loss and which KL term it is, is asked once
// for all rows: one instance of the loops for each that is common.
#include "row_tensors.h"

#if defined(__GNUC__)
#define UNIVG_FLATTEN __attribute__((flatten))  // the constants of `fixed` reach every branch of the row program
#else
#define UNIVG_FLATTEN
#endif

namespace univg {
namespace {

template <class acc_t>
struct Rows {
  RowInputs<acc_t> in;
  const acc_t *logp, *entropy;  // entropy may be null
  acc_t *a, *b;                 // dL/dlogp, dL/dentropy

  Row<acc_t> read(int64_t t, const Program<acc_t>& p) const {
    return read_row(in, p, t, logp[t], entropy ? entropy[t] : acc_t(0));
  }
};

constexpr int kAsked = -1;  // as a KL: whichever it is

// The program with what the instance knows of it.
template <LossType loss, int kl, class acc_t>
Program<acc_t> fixed(Program<acc_t> p) {
  p.loss = loss;
  if (kl != kAsked) p.kl = static_cast<KL>(kl);
  return p;
}

// Rows that are alone.
template <LossType loss, int kl, class acc_t>
UNIVG_FLATTEN Totals run_rows(int64_t begin, int64_t end, const Rows<acc_t>& rows, const Program<acc_t>& program) {
  Program<acc_t> p = fixed<loss, kl>(program);
  p.level = Level::token, p.off_policy_mask = false;
  Totals totals;
  for (int64_t t = begin; t < end; ++t) {
    rows.a[t] = rows.b[t] = 0;
    if (!rows.in.counts(t)) continue;
    const Row<acc_t> row = rows.read(t, p);
    const Score<acc_t> s = score_row(row, Response<acc_t>{}, p);
    totals.add(row, s);
    rows.a[t] = s.own_slope(), rows.b[t] = s.b;
  }
  return totals;
}

// The rows of one response.
template <LossType loss, int kl, class acc_t>
UNIVG_FLATTEN Totals run_response(int64_t begin, int64_t end, const Rows<acc_t>& rows, const Program<acc_t>& program) {
  const Program<acc_t> p = fixed<loss, kl>(program);
  ResponseSums sums;
  for (int64_t t = begin; t < end; ++t)
    if (rows.in.counts(t)) add_row(sums, rows.read(t, p), p);
  const Response<acc_t> response = finish(sums, p);
  Totals totals;
  double slope = 0;
  for (int64_t t = begin; t < end; ++t) {
    rows.a[t] = rows.b[t] = 0;
    if (!rows.in.counts(t)) continue;
    const Row<acc_t> row = rows.read(t, p);
    const Score<acc_t> s = score_row(row, response, p);
    totals.add(row, s);
    rows.a[t] = s.own_slope(), rows.b[t] = s.b;
    slope += s.response_slope;
  }
  if (!p.spreads()) return totals;
  for (int64_t t = begin; t < end; ++t)
    if (rows.in.counts(t)) rows.a[t] += share(rows.read(t, p), response, p) * acc_t(slope);
  return totals;
}

template <class acc_t>
using Run = Totals (*)(int64_t, int64_t, const Rows<acc_t>&, const Program<acc_t>&);

template <LossType loss, class acc_t>
Run<acc_t> choose(const Program<acc_t>& p) {
  constexpr int none = static_cast<int>(KL::none), k3 = static_cast<int>(KL::k3);
  if constexpr (loss != LossType::vespo && loss != LossType::gmpo) {
    if (p.rows_are_alone())
      return p.kl == KL::none ? run_rows<loss, none, acc_t>
                              : p.kl == KL::k3 ? run_rows<loss, k3, acc_t> : run_rows<loss, kAsked, acc_t>;
  }
  return p.kl == KL::none ? run_response<loss, none, acc_t> : run_response<loss, kAsked, acc_t>;
}

template <class acc_t>
Run<acc_t> choose(const Program<acc_t>& p) {
  switch (p.loss) {
    case LossType::cispo: return choose<LossType::cispo>(p);
    case LossType::sapo: return choose<LossType::sapo>(p);
    case LossType::vespo: return choose<LossType::vespo>(p);
    case LossType::gmpo: return choose<LossType::gmpo>(p);
    case LossType::reinforce: return choose<LossType::reinforce>(p);
    default: return choose<LossType::grpo>(p);  // the clipped surrogate, whatever the mean is over
  }
}

constexpr int64_t kRowsPerBlock = 2048;

std::tuple<Tensor, Tensor, Tensor, Tensor> policy_rows(const Tensor& logp, const std::optional<Tensor>& entropy,
                                                       const Tensor& cu_seqlens, UNIVG_ROW_PARAMETERS,
                                                       UNIVG_PROGRAM_PARAMETERS) {
  const RowTensors tensors{UNIVG_ROW_ARGUMENTS};
  const Program<double> program = parse_program(UNIVG_PROGRAM_ARGUMENTS);
  check_given(program, tensors);
  return dispatch_float(logp, "policy_rows", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t n = logp.numel(), responses = cu_seqlens.numel() - 1;
    const int64_t* cu = checked_offsets(cu_seqlens, n, "policy_rows");
    Tensor grad_logp = make<acc_t>(logp, {n}), grad_entropy = make<acc_t>(logp, {n});
    const Rows<acc_t> rows{pointers<acc_t>(tensors, n), data<acc_t>(logp, n, "logp"), data<acc_t>(entropy, n, "entropy"),
                           data<acc_t>(grad_logp, n, "grad_logp"), data<acc_t>(grad_entropy, n, "grad_entropy")};
    const Program<acc_t> p = cast_program<acc_t>(program);
    const Run<acc_t> run = choose(p);
    const bool alone = p.rows_are_alone();
    std::vector<Totals> blocks(alone ? (n + kRowsPerBlock - 1) / kRowsPerBlock : responses);
    torch::stable::parallel_for(0, std::ssize(blocks), alone ? 1 : 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        blocks[i] = alone ? run(i * kRowsPerBlock, std::min(n, (i + 1) * kRowsPerBlock), rows, p)
                          : run(cu[i], cu[i + 1], rows, p);
    });
    auto [loss, metrics] = total<acc_t>(blocks, logp);
    return {loss, metrics, grad_logp, grad_entropy};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("policy_rows", TORCH_BOX(&policy_rows)); }

}  // namespace univg
