// Every schema of univg_kernels, and nothing else: the ABI on one page. Implementations register beside themselves.
// [N, V] logits fp64|fp32|bf16|fp16; [N] factors in the dtype of the maths (fp64 for fp64, else fp32); ids int64.
// A trailing underscore: the logits are overwritten with the gradient of the loss.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(univg_kernels, m) {
  m.def("logprob(Tensor logits, Tensor token_ids, float temperature) -> (Tensor logp, Tensor entropy, Tensor lse)");
  m.def(
      "logprob_backward(Tensor logits, Tensor token_ids, Tensor lse, Tensor entropy, Tensor grad_logp, "
      "Tensor grad_entropy, float temperature) -> Tensor");
  m.def(
      "logprob_backward_(Tensor(a!) logits, Tensor token_ids, Tensor lse, Tensor entropy, Tensor grad_logp, "
      "Tensor grad_entropy, float temperature) -> ()");
  m.def(
      "grpo_head(Tensor logits, Tensor token_ids, Tensor advantage, Tensor phi, Tensor weight, Tensor? old_logp, "
      "Tensor? ref_logp, str loss_type, float epsilon_low, float epsilon_high, float delta, float beta, "
      "float temperature, bool with_grad) -> (Tensor loss, Tensor metrics, Tensor logp, Tensor active, Tensor grad)");
  m.def(
      "grpo_head_(Tensor(a!) logits, Tensor token_ids, Tensor advantage, Tensor phi, Tensor weight, Tensor? old_logp, "
      "Tensor? ref_logp, str loss_type, float epsilon_low, float epsilon_high, float delta, float beta, "
      "float temperature) -> (Tensor loss, Tensor metrics, Tensor logp, Tensor active)");
  m.def(
      "policy_rows(Tensor logp, Tensor? entropy, Tensor advantage, Tensor phi, Tensor weight, Tensor? old_logp, "
      "Tensor? ref_logp, str loss_type, float epsilon_low, float epsilon_high, float delta, float beta) "
      "-> (Tensor loss, Tensor metrics, Tensor grad)");
  m.def(
      "ce_head_(Tensor(a!) logits, Tensor token_ids, Tensor row_weight) -> (Tensor loss, Tensor logp, Tensor active)");
  m.def(
      "group_advantage(Tensor rewards, Tensor cu_groups, str scale, float eps) "
      "-> (Tensor advantages, Tensor mean, Tensor std)");
  m.def("group_mean(Tensor values, Tensor cu_groups) -> Tensor");
  m.def("difficulty_weight(Tensor miou, str kind, float power, bool normalize) -> Tensor");
  m.def("box_iou(Tensor boxes1, Tensor boxes2, bool pairwise, bool giou, bool univg_r1) -> Tensor");
}
