"""Configurations for tests of what depends on how far rows depend on each other."""

import univg_kernels as uk

# One config for each way in which rows depend on each other, with the branches that take most arguments.
COUPLED = {
    "row": uk.GrpoConfig(importance_sampling_mode="token_truncate"),
    "response": uk.GrpoConfig(
        loss_type="sapo", importance_sampling_level="sequence", use_bias_correction_kl=True,
        off_policy_mask_threshold=0.1,
    ),
    "batch": uk.GrpoConfig(loss_type="vespo", top_entropy_quantile=0.5, entropy_coef=0.1, kl_estimator="k3+"),
}  # fmt: skip
