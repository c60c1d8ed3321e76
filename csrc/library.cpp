// Every schema of univg_kernels, and nothing else: the ABI on one page. Implementations register beside themselves.
// [N, V] logits fp64|fp32|bf16|fp16; [N] factors in the dtype of the maths (fp64 for fp64, else fp32); ids and offsets
// int64. scale, cap: x = cap·tanh(z·scale/cap), or z·scale where cap is 0. A trailing underscore: the logits are
// overwritten with the gradient of the loss.
#include <torch/csrc/stable/library.h>

// RowInputs of policy_loss/cpp_impl.py; given_importance goes with importance "token_given" and "sequence_given".
#define UNIVG_ROWS                                                                                            \
  "Tensor advantage, Tensor phi, Tensor weight, Tensor? entropy_weight, Tensor? entropy_threshold, "          \
  "Tensor? old_logp, Tensor? ref_logp, Tensor? sampling_logp, Tensor? given_importance, "
// Program of _program.py.
#define UNIVG_PROGRAM                                                                                          \
  "str loss_type, str level, str kl, str importance, bool k3_clamp, bool kl_times_ratio, "                     \
  "bool kl_times_importance, bool importance_mean, bool off_policy_mask, float[] scalars"

STABLE_TORCH_LIBRARY(univg_kernels, m) {
  m.def(
      "logprob(Tensor logits, Tensor token_ids, float scale, float cap, Tensor? mask=None) "
      "-> (Tensor logp, Tensor entropy, Tensor lse)");
  m.def(
      "logprob_backward(Tensor logits, Tensor token_ids, Tensor lse, Tensor entropy, Tensor grad_logp, "
      "Tensor grad_entropy, float scale, float cap) -> Tensor");
  m.def(
      "logprob_backward_(Tensor(a!) logits, Tensor token_ids, Tensor lse, Tensor entropy, Tensor grad_logp, "
      "Tensor grad_entropy, float scale, float cap) -> ()");
  m.def(
      "grpo_head(Tensor logits, Tensor token_ids, " UNIVG_ROWS UNIVG_PROGRAM
      ", float scale, float cap, bool with_grad) "
      "-> (Tensor loss, Tensor metrics, Tensor logp, Tensor active, Tensor grad)");
  m.def(
      "grpo_head_(Tensor(a!) logits, Tensor token_ids, " UNIVG_ROWS UNIVG_PROGRAM
      ", float scale, float cap) -> (Tensor loss, Tensor metrics, Tensor logp, Tensor active)");
  m.def(
      "row_terms(Tensor like, Tensor cu_seqlens, Tensor? mask, Tensor? advantages, Tensor? token_advantages, "
      "Tensor? phi, Tensor? importance_ratio, Tensor? denominator, str aggregation, bool count_empty, float norm) "
      "-> (Tensor advantage, Tensor phi, Tensor weight, Tensor importance)");
  m.def(
      "policy_rows(Tensor logp, Tensor? entropy, Tensor cu_seqlens, " UNIVG_ROWS UNIVG_PROGRAM
      ") -> (Tensor loss, Tensor metrics, Tensor grad_logp, Tensor grad_entropy)");
  m.def(
      "ce_head_(Tensor(a!) logits, Tensor token_ids, Tensor row_weight, float scale, float cap) "
      "-> (Tensor loss, Tensor logp, Tensor active)");
  m.def(
      "group_advantage(Tensor rewards, Tensor cu_groups, str scale, float eps, bool center_singletons) "
      "-> (Tensor advantages, Tensor mean, Tensor std)");
  m.def("group_mean(Tensor values, Tensor cu_groups) -> Tensor");
  m.def("difficulty_weight(Tensor miou, str kind, float power, bool normalize) -> Tensor");
  m.def("box_iou(Tensor boxes1, Tensor boxes2, bool pairwise, bool giou, bool univg_r1) -> Tensor");
  m.def(
      "box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, bool pairwise, bool giou, bool univg_r1) "
      "-> (Tensor, Tensor)");
  m.def(
      "box_iou_ragged(Tensor boxes1, Tensor boxes2, Tensor offsets1, Tensor offsets2, int pairs, bool giou, "
      "bool univg_r1) -> Tensor");
  m.def(
      "box_iou_ragged_backward(Tensor grad, Tensor boxes1, Tensor boxes2, Tensor offsets1, Tensor offsets2, bool giou, "
      "bool univg_r1) -> (Tensor, Tensor)");
  m.def(
      "matched_iou(Tensor boxes1, Tensor boxes2, Tensor offsets1, Tensor offsets2, Tensor? images1, Tensor? images2, "
      "bool univg_r1) -> (Tensor total, Tensor matches, Tensor partner, Tensor iou)");
  m.def(
      "scan_boxes(Tensor text, Tensor offsets, Tensor options, int mode, int most) "
      "-> (Tensor facts, Tensor ends, Tensor boxes, Tensor images, Tensor labels)");
  m.def("distinct_runs(Tensor text, Tensor offsets, Tensor unanswered, int n) -> Tensor");
}
