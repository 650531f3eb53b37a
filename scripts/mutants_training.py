"""Faults in what a step of training does: objectives, gradient, policy, and traces to imitate."""

from __future__ import annotations

from mutant_table import faults

OBJECTIVES = faults(
    "objectives.py",
    "test_objectives",
    ("policy term: descends", "total = -((weight", "total = ((weight"),
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
        "leave_out(values, group, nodes[:, k], valid,",
        "leave_out(values, group, torch.arange(len(values)), valid,",
    ),
    ("baseline: siblings of any parent", '"sibling": parent}', '"sibling": problem}'),
    ("baseline: rloo across questions", '"rloo": problem, ', '"rloo": torch.zeros_like(problem), '),
    (
        "baseline: stored attempts counted",
        "    counted = valid.to(values.dtype)\n    others",
        "    counted = torch.ones_like(values)\n    others",
    ),
    ("baseline: asked for where nothing is earned", "not values[valid].any()", "not valid.any()"),
    ("length norm: all attempts alike", '"sequence": lengths.clamp(min=1)', '"sequence": lengths.mean().clamp(min=1)'),
    ("length norm: by episodes, not tokens", "/ lengths.sum().clamp(min=1)", "/ lengths.shape[0]"),
    ("bonus to all: of what came before, not after", "bonus.flip(1).cumsum(1).flip(1)", "bonus.cumsum(1)"),
)

UPDATE = [
    *faults(
        "update.py",
        "test_update test_invariants",
        (
            "divisor of the micro-batch",
            "batch.token_turn, scores.logprobs, kl, ratio)\n",
            "batch.token_turn, scores.logprobs, kl, ratio) / len(batch.row_episode)\n",
        ),
        (
            "KL in the reward: added",
            "credit = credit - beta * _kl_in_reward",
            "credit = credit + beta * _kl_in_reward",
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
        (
            "memory: what a failed pass left counts",
            "        policy.zero_grad()\n        torch.manual_seed(seed)",
            "        torch.manual_seed(seed)",
        ),
        ("memory: halved from a budget nobody reached", "max_tokens = split // 2", "max_tokens //= 2"),
        ("memory: every error is a lack of it", "if not is_out_of_memory(error):", "if False:"),
        ("memory: another dropout the second time", "        torch.manual_seed(seed)\n", ""),
    ),
    *faults(
        "batch.py",
        "test_batch test_update",
        ("mask: one place early", "return self.turn[:, 1:] > 0", "return self.turn[:, :-1] > 0"),
        ("mask: contexts are trained", "turn += (0,) * new", "turn += (k,) * new"),
        ("mask: stored attempts are trained", "(k if attempt.sampled else 0,)", "(k,)"),
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
        ("reference: not shown the last token", "nonzero().max()) + 1", "nonzero().max())"),
    ),
]

POLICY = [
    *faults(
        "logprobs.py",
        "test_logprobs test_policy",
        ("temperature: ignored in chunks", "        logits = logits / temperature\n", "        pass\n"),
        ("temperature: ignored by the kernel", "        hidden / temperature,\n", "        hidden,\n"),
        ("temperature: the kernel's bias is not divided", "else bias / temperature", "else bias"),
        ("exact KL: the other direction", "(log_p.exp() * (log_p - log_q)).sum", "(log_q.exp() * (log_q - log_p)).sum"),
        ("chunks: as many tokens as logits", "max(1, chunk // (copies * head.vocabulary))", "max(1, chunk)"),
        ("cap: forgotten", "    if head.cap:\n", "    if False:\n"),
        ("kernel: a cap is passed over", "            not self.cap\n            and type", "            type"),
        ("kernel: an adapter is passed over", "and type(module) is nn.Linear", "and True"),
        ("kernel: a hook is passed over", "            and not module._forward_hooks\n", ""),
        ("bfloat16: summed up as it is", "logits = head.module(hidden).float()", "logits = head.module(hidden)"),
    ),
    *faults(
        "policy.py",
        "test_policy test_logprobs test_invariants test_update",
        (
            "temperature: ignored in the reference",
            "token_logprobs(states, targets, head_of(model), temperature, self.chunk)",
            "token_logprobs(states, targets, head_of(model), 1.0, self.chunk)",
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
            "copy.deepcopy(self.model) if source is None else source",
            "copy.deepcopy(self.model)",
        ),
        ("reference: adapter on", "with self.model.disable_adapter():  # type: ignore[operator]", "if True:"),
        (
            "reference: adapter stays off",
            '                finally:\n                    self.model.set_adapter("default")',
            "                finally:\n                    self.model.set_adapter(REFERENCE_ADAPTER)",
        ),
        ("reference: saved as a second adapter", '"selected_adapters": ["default"], ', ""),
        (
            "reference: training mode lost",
            "            self.model.train(was_training)\n\n    def frozen",
            "            pass\n\n    def frozen",
        ),
        (
            "exact KL: the policy's own head for both",
            "            return head_of(self._frozen[0])",
            "            return head_of(self.model)",
        ),
        ("exact KL: the adapter on for both", "return head._replace(module=inner)", "return head"),
        ("end: the model's own tokens forgotten", "[found] if isinstance(found, int) else found or ()", "()"),
    ),
    *faults(
        "loading.py",
        "test_loading test_policy",
        (
            "check: any logits will do",
            "if not torch.allclose(ours, theirs",
            "if False and not torch.allclose(ours, theirs",
        ),
        (
            "dtype: a whole model trains in bfloat16",
            'if trains and whole and settings.dtype == "auto":',
            "if False:",
        ),
        ("dropout: of the pretrained model on", "            module.p = 0.0\n", "            pass\n"),
        ("hub: any revision", "settings.path, revision=settings.revision, allow", "settings.path, allow"),
        (
            "code of a model: runs unasked",
            '"trust_remote_code": settings.trust_remote_code',
            '"trust_remote_code": True',
        ),
    ),
    *faults(
        "adapters.py",
        "test_policy test_loading",
        ("adapter: another scale is taken", '(("rank", "r"), ("alpha", "lora_alpha"))', '(("rank", "r"),)'),
        (
            "adapter: a missing part is taken",
            "odd = sorted((stored.keys() - known) | (wanted.keys() - stored.keys()))",
            "odd = []",
        ),
    ),
]

TRACES = [
    *faults(
        "traces.py",
        "test_supply test_traces",
        ("STaR: what goes from right to wrong and back", "if marks[-1] and marks == sorted(marks)", "if marks[-1]"),
        ("STaR: what ends wrong", "if marks[-1] and marks == sorted(marks)", "if marks == sorted(marks)"),
        ("STaR: D+ is D", "(keep_correct or not marks[0] or len", "(not marks[0] or len"),
        ("pairs: D+ behind itself", "_pair(right[number - 1], last, chat)", "_pair(right[number], last, chat)"),
        ("pairs: one wrong attempt for all", "wrong[number % len(wrong)]", "wrong[0]"),
        ("pairs: the order ignores the seed", "Random(derive(*key, place))", "Random(place)"),
        (
            "pairs: across questions",
            "before.problem.id != episode.problem.id or before.path >=",
            "before.path >=",
        ),
        ("pairs: a question drawn twice is one", " or before.path >= episode.path:", ":"),
        ("pairs: the right attempt's own context", "replace(after, context_ids=context)", "after"),
        (
            "pairs: fewer attempts than RL samples",
            "(sum(prod(branch[: k + 1]) for k in range(len(branch))),)",
            "(prod(branch),)",
        ),
        (
            "credit: attempts before the last are trained",
            "replace(attempt, sampled=trained,",
            "replace(attempt, sampled=True,",
        ),
        ("credit: only what was right from the start", "replace(attempt.grade, reward=1.0)", "attempt.grade"),
        ("credit: the engine's log-probs stay", "engine_logprobs=(), grade=grade", "grade=grade"),
        (
            "rounds: every step has the first traces",
            "place * stage.episodes, stage.episodes, key",
            "0, stage.episodes, key",
        ),
        ("rounds: each begins anew, asked or not", "restart = stage.restarts and", "restart ="),
        ("rounds: a half-written row stays", '    os.truncate(file, content.rfind(b"\\n") + 1)\n', ""),
        ("rounds: traces count as just sampled", "on_policy=False", "on_policy=True"),
    ),
    *faults(
        "objectives.py",
        "test_traces",
        ("traces: pinned to the reference", "attempts, (0.0,) * attempts)", "attempts, (0.01,) * attempts)"),
    ),
    *faults(
        "schedule.py",
        "test_schedule test_traces",
        ("rounds: one schedule for all", "    if stage.restarts:\n", "    if False:\n"),
        ("bonus to all: not passed on", "        bonus_to=stage.bonus_to,\n", ""),
    ),
    *faults(
        "supply.py",
        "test_supply",
        ("questions: each stage from the first one", "self.begin + step * number, number", "step * number, number"),
        ("stored attempts: of one question more", "if i < number else None", "if i <= number else None"),
        ("ungraded: trained as they are", "[episode for episode in played if episode.graded]", "list(played)"),
        ("ungraded: nobody is told", "complete=not ungraded", "complete=True"),
        ("draws: the same in every stage", '"rollout", self.work.place, step)', '"rollout", step)'),
    ),
]

TRAINING = [*OBJECTIVES, *UPDATE, *POLICY, *TRACES]
