"""docs/losses.md, made of what the faces are made of: the loss table, the settings, the conventions, the metrics.

python -m univg_kernels.document [PATH]   prints it, or writes it to PATH
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import torch

from . import conventions, metrics
from ._rows import PolicyRows, coupling
from .config import AGGREGATION, GrpoConfig
from .policy_loss.table import KLS, LOSSES

COMMAND = "python -m univg_kernels.document docs/losses.md"

HEAD = f"""# The loss table

Made by `{COMMAND}`; change the code that it is made of, not this file.
It is proved in `tests/ops/test_reference.py`, where the whole table is written out token by token.

```
L = Σ_t w_t·(phi_i·gate_t·policy_t + beta·kl_t) - entropy_coef·Σ_t e_t·H_t
```

over the rows t (tokens) that count, i being the response of t:

"""
NAMES = {
    "lp, old, ref": "log-probability of the token under the policy, under the one that the ratio is against, under the "
    "reference",
    "H": "entropy of the policy at the row, nats",
    "rho": "the ratio, exp(log-ratio) at its level; the log-ratio within `log_ratio_min`, `log_ratio_max`",
    "A, phi": "advantage of the response or of the token; difficulty weight, also when negative",
    "n_i": "rows of response i that count, at least 1",
    "gate": "importance ratio × off-policy mask × entropy mask; no gradient flows through it",
    "w": "mask ÷ denominator, shared out as the aggregation says",
    "e": "like w, or 1 ÷ number of rows that the entropy mask keeps (`entropy_aggregation`)",
    "sg(x)": "x without a gradient",
}
LEVELS = {
    "token": ("lp - old", "u_t·rho·s_t", "row"),
    "sequence": ("mean of lp - old over the response", "(1/n_i)·Σ_j u_j·rho·s_j, for each of its rows", "response"),
    "sequence_token": ("lp - sg(lp) + sg(that mean)", "u_t·rho·s_t", "response"),
}
BELOW_LEVELS = """
u = w·phi·gate; s is the slope of the policy term by rho, 0 where the log-ratio is out of its bounds. The gradients of
cispo, vespo and reinforce go through lp itself and are the same at every level; gmpo has a ratio of its own.
"""
AGGREGATIONS = {
    "token-mean": ("1/D", "tokens of the call"),
    "seq-mean-token-mean": ("1/(D·n_i)", "responses"),
    "seq-mean-token-sum": ("1/D", "responses"),
    "seq-mean-token-sum-norm": ("1/(D·max_completion_length)", "responses"),
}
BELOW_AGGREGATIONS = """
D is `denominator` where that is given, else at least 1. With `count_empty_responses=False` it counts only responses
that have a row that counts.
"""
BELOW_LOSSES = """
**Coupling** says what a row's gradient depends on. "row": on the row; it is made in one pass over the logits.
"response": on its response; so does every loss at a level other than "token", with `off_policy_mask_threshold`, and
with `sampling_logp` corrected per response. "batch": on all rows; so does every loss with `top_entropy_quantile` below
1 and no `entropy_threshold`, and an entropy bonus that is a mean over the tokens that an entropy mask keeps.
"""
BELOW_KLS = """
`use_bias_correction_kl` multiplies it by rho, whose own gradient then is a part of it: for k3 at level "token" the two
make rho·(lp - ref).
"""
GATE = {
    "`importance_ratio`, `token_importance_ratio`": "the given ratio",
    "`sampling_logp`, `importance_sampling_mode`": "exp(old - sampling) per token, or of the sum or the mean over the "
    "response (`importance_sampling_aggregation`); cut to `importance_sampling_clip_min`, "
    "`importance_sampling_clip_max` (`…_truncate`), or 0 outside (`…_mask`); where sampling_logp is NaN, a "
    "difference of 0",
    "`off_policy_mask_threshold`": "0 where A < 0 and the response's mean of sampling - lp (or, without sampling_logp, "
    "old - lp) is above it",
    "`top_entropy_quantile`, `entropy_threshold`": "0 where H is below the quantile 1 - `top_entropy_quantile` of the "
    "call's rows, or below the threshold",
}
BELOW_GATE = """
vespo has the importance ratio in its own weight. For gmpo it is the geometric mean over the response, and the entropy
mask chooses the rows of gmpo's mean. `importance_sampling_on_kl` weighs the KL term by the ratio; masks never touch it.
"""


def code(text: str) -> str:
    """As code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def formula(text: str) -> str:
    """A formula of the table: alternatives under each other."""
    return "<br>".join(code(part) for part in text.split("; "))


def section(title: str, header: Iterable[str], rows: Iterable[Iterable[str]], below: str) -> str:
    return f"\n## {title}\n\n{table(header, rows)}{below}"


def losses() -> str:
    none = PolicyRows(torch.zeros(1, dtype=torch.int64))
    rows: list[tuple[str, ...]] = []
    seen: dict[tuple[str, str], str] = {}
    for name, entry in LOSSES.items():
        said = (entry.formula, entry.gradient)
        words = [f"as {seen[said]}"] * 2 if said in seen else [formula(part) for part in said]
        seen.setdefault(said, code(name))
        alone = GrpoConfig(loss_type=name, max_completion_length=1)
        rows.append((code(name), *words, AGGREGATION[name], coupling(none, alone), entry.source))
    header = ("`loss_type`", "policy term of a row", "its gradient by lp", "is a mean over", "coupling", "source")
    return section("Policy losses", header, rows, BELOW_LOSSES)


def levels() -> str:
    rows = [(code(name), *map(code, parts[:2]), parts[2]) for name, parts in LEVELS.items()]
    header = ("`importance_sampling_level`", "log-ratio", "dL/dlp of the policy term", "coupling")
    return section("Levels of the ratio", header, rows, BELOW_LEVELS)


def aggregations() -> str:
    rows = [(code(name), code(weight), of) for name, (weight, of) in AGGREGATIONS.items()]
    return section("Aggregations", ("`loss_aggregation`", "w of a row", "D counts"), rows, BELOW_AGGREGATIONS)


def kls() -> str:
    rows = [(code(name), formula(entry.formula), formula(entry.gradient)) for name, entry in KLS.items()]
    return section("KL estimators", ("`kl_estimator`", "kl of a row", "its gradient by lp"), rows, BELOW_KLS)


def _setting(value: Any) -> str:
    return "—" if value is None else code(str(value))


def _differing(one: GrpoConfig, other: GrpoConfig) -> dict[str, Any]:
    """Settings of `other` that `one` has otherwise."""
    return {f.name: getattr(other, f.name) for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)}


def presets() -> str:
    default = GrpoConfig()
    configs = {name: GrpoConfig.like(name) for name in conventions.PRESETS}
    named = {key for config in configs.values() for key in _differing(default, config)}
    rows = []
    for key in (f.name for f in fields(default) if f.name in named):
        own = getattr(default, key)
        theirs = [_setting(getattr(c, key)) for c in configs.values()]
        rows.append((code(key), _setting(own), *(f"**{x}**" if x != _setting(own) else x for x in theirs)))
    header = ("setting", "`GrpoConfig()`", *(f'`like("{name}")`' for name in configs))
    text = "\n## Conventions by name\n\n`GrpoConfig.like(codebase, **settings)`: what codebases mean by their names; "
    text += "settings\nnot in the table are the same everywhere.\n\n" + table(header, rows)
    text += "\nWhat a codebase has of the loss table; for anything else `like` raises ValueError:\n\n"
    text += table(("codebase", "has"), _what_is_there())
    text += "\nWhat follows from a loss type and level, unless it is given:\n\n"
    text += table(("codebase", "of", "is"), _what_follows())
    return text + "\n" + (inspect.getdoc(conventions) or "").partition("\n\n")[2] + "\n"


def _what_follows() -> Iterable[tuple[str, str, str]]:
    for name in conventions.PRESETS:
        for loss, level in _supported(name):
            given = dict(loss_type=loss, importance_sampling_level=level, max_completion_length=1)
            plain = GrpoConfig(**(conventions.PRESETS[name] | given))
            more = _differing(plain, GrpoConfig.like(name, **given))
            if more:
                settings = ", ".join(code(f"{k}={v}") for k, v in more.items())
                yield code(name), f"{code(loss)} at level {code(level)}", settings


def _supported(codebase: str) -> list[tuple[str, str]]:
    """Pairs of loss type and level that the codebase has."""
    return [pair for losses, levels in conventions.SUPPORTED[codebase] for pair in product(losses, levels)]


def _what_is_there() -> Iterable[tuple[str, str]]:
    for name, parts in conventions.SUPPORTED.items():
        has = (f"{', '.join(map(code, losses))} at level {' or '.join(map(code, levels))}" for losses, levels in parts)
        yield code(name), "<br>".join(has)


def _words_on(variable: str, module: Any) -> str:
    """The string below an assignment."""
    body = ast.parse(inspect.getsource(module)).body
    for at, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == variable:
            words = body[at + 1]
            assert isinstance(words, ast.Expr) and isinstance(words.value, ast.Constant)
            return inspect.cleandoc(str(words.value.value))
    raise LookupError(variable)


def metric_list() -> str:
    first, _, rest = _words_on("METRICS", metrics).partition("\n\n")
    entries, _, last = " ".join(rest.split()).rpartition(". ")
    rows = []
    for entry in entries.split(" · "):
        names, _, words = entry.partition(": ")
        rows.append((", ".join(map(code, names.split(", "))), words.replace("|", "\\|")))
    return f"\n## Metrics\n\n{first} {last}\n`summarize` gives them TRL's names.\n\n" + table(("metric", "is"), rows)


def document() -> str:
    names = table(("name", "is"), ((code(name), words) for name, words in NAMES.items()))
    gate = section("The gate", ("given", "factor of the policy term"), GATE.items(), BELOW_GATE)
    return "".join([HEAD, names, losses(), levels(), aggregations(), kls(), gate, presets(), metric_list()])


def main(arguments: list[str]) -> None:
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        sys.exit(f"usage: {COMMAND}")
    if arguments:
        Path(arguments[0]).write_text(document(), encoding="utf-8")
    else:
        print(document(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
