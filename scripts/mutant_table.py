"""Faults that someone could really make, each with the tests that are there to notice it."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault: in `file` of the package, `old` (found exactly once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _faults(file: str, tests: str, *rows: tuple[str, str, str]) -> list[Mutant]:
    paths = tuple(f"tests/{name}.py" for name in tests.split())
    return [Mutant(name, file, old, new, paths) for name, old, new in rows]


OBJECTIVES = _faults(
    "objectives.py",
    "test_objectives",
    ("policy term: descends", "total = -(weights.policy", "total = (weights.policy"),
    ("KL term: pushes away", "return total if kl is None else total + (", "return total if kl is None else total - ("),
    ("policy term: another attempt's weight", "weights.policy[episode, turn - 1]", "weights.policy[episode, turn - 2]"),
    ("KL: k2 in place of k3", "return d.exp() - d - 1", "return d**2 / 2"),
    ("KL: k3 in place of k2", "return d**2 / 2", "return d.exp() - d - 1"),
    ("KL: k1 upside down", "        return -d\n", "        return d\n"),
    ("bonus: on attempt 1 too", "prepend=progress[:, :1])", "prepend=0 * progress[:, :1])"),
    ("bonus: sign of the change", "change = progress.diff", "change = -progress.diff"),
    (
        "bonus: breaking is rewarded",
        "- objective.alpha_break * (-change).clamp(min=0)",
        "+ objective.alpha_break * (-change).clamp(min=0)",
    ),
    ("bonus: fixing and breaking swapped", "objective.alpha_fix * change", "objective.alpha_break * change"),
    ("bonus: replaces the reward", "new_tensor(objective.reward) + bonus", "new_tensor(objective.reward) * 0 + bonus"),
    (
        "credit: the whole return to every attempt",
        "credit[:, k] += objective.gamma * credit[:, k + 1]",
        "credit[:, k] += credit[:, k + 1]",
    ),
    ("stage I: beta1 and beta2 swapped", "(0.0, 1.0), beta=(beta2, beta1)", "(0.0, 1.0), beta=(beta1, beta2)"),
    ("stage I: rewards attempt 1", "Objective(reward=(0.0, 1.0)", "Objective(reward=(1.0, 1.0)"),
    ("sub-stage: pins attempt 1 only", "beta=(beta2,) * j + (beta1,)", "beta=(beta2,) + (beta1,) * j"),
    (
        "baseline: own reward not left out",
        "others = _sum_by(group, values * counted) - _sum_by(unit, values * counted)\n"
        "    number = _sum_by(group, counted) - _sum_by(unit, counted)",
        "others = _sum_by(group, values * counted)\n    number = _sum_by(group, counted)",
    ),
    (
        "baseline: a shared attempt compared with itself",
        "leave_out(values, group, nodes[:, k], valid)",
        "leave_out(values, group, torch.arange(len(values)), valid)",
    ),
    ("baseline: siblings of any parent", '"sibling": parent}', '"sibling": problem}'),
    ("baseline: rloo across questions", '"rloo": problem, ', '"rloo": torch.zeros_like(problem), '),
    (
        "baseline: stored attempts counted",
        "    counted = valid.to(values.dtype)\n    others",
        "    counted = torch.ones_like(values)\n    others",
    ),
    ("length norm: all attempts alike", '"sequence": lengths.clamp(min=1)', '"sequence": lengths.mean().clamp(min=1)'),
    ("length norm: by episodes, not tokens", "/ lengths.sum().clamp(min=1)", "/ lengths.shape[0]"),
)

UPDATE = [
    *_faults(
        "update.py",
        "test_update test_invariants",
        (
            "divisor of the micro-batch",
            "value = _loss(weights, batch, scores, None if in_reward else kl)",
            "value = _loss(weights, batch, scores, None if in_reward else kl) / len(batch.row_episode)",
        ),
        (
            "KL in the reward: added",
            "credit = credit - credit.new_tensor(objective.beta)",
            "credit = credit + credit.new_tensor(objective.beta)",
        ),
        ("KL in the reward: of all attempts", "    return sums\n", "    return sums.sum(1, keepdim=True) + 0 * sums\n"),
        ("bonus: always on the reward", 'table.correct if stage.bonus_on == "correct" else None', "None"),
        (
            "length norm: limits of the wrong attempt",
            "tuple(stage.max_new_tokens)",
            "tuple(stage.max_new_tokens)[::-1]",
        ),
        (
            "tree: paths without their question",
            "node.setdefault((label, e.path[:k])",
            "node.setdefault((0, e.path[:k])",
        ),
        ("tree: a question drawn twice is one", "if (label, episode.path) in seen:", "if False:"),
        ("KL that is logged: of stored attempts too", "kl_sums[own, k].mean()", "kl_sums[:, k].mean()"),
    ),
    *_faults(
        "batch.py",
        "test_batch test_update",
        ("mask: one place early", "return self.turn[:, 1:] > 0", "return self.turn[:, :-1] > 0"),
        (
            "mask: contexts are trained",
            "turn += (0,) * (len(attempt.context_ids)",
            "turn += (k,) * (len(attempt.context_ids)",
        ),
        ("mask: stored attempts are trained", "turn += (k if attempt.sampled else 0,)", "turn += (k,)"),
        (
            "mask: padding is trained",
            "turn=padded([row.turn for row in part], 0)",
            "turn=padded([row.turn for row in part], 1)",
        ),
        ("rows: a rewritten history is kept in one", "if ids and attempt.context_ids[: len(ids)] != ids:", "if False:"),
        (
            "micro-batches: over the budget",
            "(len(batches[-1]) + 1) * len(batches[-1][0].ids)",
            "len(batches[-1]) * len(batches[-1][0].ids)",
        ),
    ),
]

POLICY = _faults(
    "policy.py",
    "test_policy test_invariants test_update",
    (
        "temperature: ignored in scoring",
        "return (logits / temperature).log_softmax(dim=-1)",
        "return logits.log_softmax(dim=-1)",
    ),
    (
        "temperature: ignored in the reference",
        "                _token_logprobs(h, t, temperature, model)\n",
        "                _token_logprobs(h, t, 1.0, model)\n",
    ),
    (
        "padding: attended",
        "input_ids=input_ids, attention_mask=attention_mask, position",
        "input_ids=input_ids, attention_mask=torch.ones_like(attention_mask), position",
    ),
    ("scores: of the place itself", "return states[:, :-1][predicts]", "return states[:, 1:][predicts]"),
    ("reference: not frozen", "copy.deepcopy(self.model) if source is None", "self.model if source is None"),
    (
        "reference: the given one ignored",
        "if source is None else source",
        "if source is None else copy.deepcopy(self.model)",
    ),
    ("reference: adapter on", "with self.model.disable_adapter():  # type: ignore[operator]", "if True:"),
    (
        "reference: adapter stays off",
        '                finally:\n                    self.model.set_adapter("default")',
        "                finally:\n                    self.model.set_adapter(REFERENCE_ADAPTER)",
    ),
    ("reference: saved as a second adapter", '{"selected_adapters": ["default"]}', "{}"),
    (
        "reference: training mode lost",
        "            self.model.train(was_training)\n\n    def freeze",
        "            pass\n\n    def freeze",
    ),
    ("exact KL: the other direction", "(log_p.exp() * (log_p - log_q)).sum", "(log_q.exp() * (log_q - log_p)).sum"),
    (
        "exact KL: the policy's own head for both",
        "self._frozen[0].get_output_embeddings() if self._frozen else",
        "None or",
    ),
    ("chunks: as many tokens as logits", "max(1, self.chunk // vocabulary)", "max(1, self.chunk)"),
    ("cap: forgotten", "    if cap:\n", "    if False:\n"),
    ("check: any logits will do", "if not torch.allclose(ours, theirs", "if False and not torch.allclose(ours, theirs"),
)

MUTANTS = [*OBJECTIVES, *UPDATE, *POLICY]
