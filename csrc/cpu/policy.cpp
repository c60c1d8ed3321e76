// The policy losses behind the logits head, for rows that do not depend on each other.
#include "row_loop.h"
#include "row_tensors.h"

namespace univg {
namespace {

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
    const LogitsView view = view_logits(logits, "grpo_head");
    const int64_t n = view.rows, per_block = rows_per_block(view.vocab);
    const RowInputs<acc_t> in = pointers<acc_t>(rows, n);
    const Program<acc_t> p = cast_program<acc_t>(program);
    Tensor logp = make<acc_t>(logits, {n}), active = make<bool>(logits, {n});
    auto* lp = data<acc_t>(logp, n, "logp");
    auto* is_active = data<bool>(active, n, "active");
    std::vector<Totals> blocks((n + per_block - 1) / per_block);
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
          blocks[t / per_block].add(row, s);
          lp[t] = stats.logp, is_active[t] = c.active();
          return c;
        });
    auto [loss, metrics] = total<acc_t>(blocks, logits);
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) {
  m.impl("grpo_head", TORCH_BOX(&grpo_head));
  m.impl("grpo_head_", TORCH_BOX(&grpo_head_));
}

}  // namespace univg
