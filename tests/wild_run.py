"""Run directories made by hand, among them one in which everything that a model or a user can write is an attack."""

import json
from collections.abc import Sequence
from pathlib import Path

from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.metrics import self_correction
from score_rl.settings import load

FLAG = "window.hacked=1"

ATTACKS = {
    "script": f"<script>{FLAG}</script>",
    "end of script": f"</script><script>{FLAG}</script>",
    "end of style": f"</style><script>{FLAG}</script>",
    "event handler": f'<img src=x onerror="{FLAG}"><svg onload="{FLAG}"><body onpageshow={FLAG}>',
    "attribute": f'"\'><input autofocus onfocus={FLAG} x="',
    "unclosed": "<table><tr><td><div><b><i>bold <!-- <script> <textarea> <title> <plaintext>",
    "network": '<img src="http://attack.example/a.png"><link rel=stylesheet href=//attack.example/b.css>@import "//c"',
    "refresh": '<meta http-equiv="refresh" content="0;url=http://attack.example/"><base href="http://attack.example/">',
    "form": f'<form action="javascript:{FLAG}"><button>go</button></form><a href="javascript:{FLAG}">x</a>',
    "template": "{{ 7*7 }} {% raw %} {{ self.__init__.__globals__ }} ${7*7} #{7*7}",
    "direction": "price \u202e 001 \u202c then \u2066 isolate \u2069 \u200f mark \u061c end",
    "surrogates": "high \ud800 low \udc00 turned \udc00\ud800 pair \U0001f600",
    "controls": "null \x00 bell \x07 escape \x1b[31m delete \x7f next \x85 joiner \ufeff line \u2028 paragraph \u2029",
    "marks": "Z" + "\u0301" * 400 + " after",
    "wide": "W" * 3000,
}


def attempt(
    text: str, correct: bool | None, *, tokens: int = 8, finished: bool = True, answer: str | None = None
) -> Attempt:
    """An attempt; `correct` None: the grader could not tell."""
    grade = Grade(bool(correct), None if correct is None else float(correct), answer, None if correct else "unparsable")
    return Attempt((), tuple(range(tokens)), text, finished, grade=grade)


def write_evaluation_of(run: Path, name: str, episodes: Sequence[Episode], **more: object) -> None:
    """`eval/NAME.json` and its episodes."""
    # A text of a megabyte takes its time to be compared with another.
    graded = [e for e in episodes if e.graded and len(e.attempts[0].text) < 10**5]
    metrics = self_correction(graded) if graded else {}
    metrics |= {"problems": len({e.problem.id for e in graded}), "split": "test"}
    metrics |= {"temperature": 0.0, **more}
    (run / "eval").mkdir(parents=True, exist_ok=True)
    (run / "eval" / f"{name}.json").write_text(json.dumps(metrics))
    rows = (json.dumps(episode.to_json()) + "\n" for episode in episodes)  # escapes what UTF-8 cannot hold
    (run / "eval" / f"{name}.jsonl").write_text("".join(rows))


def write_run(run: Path, overrides: Sequence[str] = (), steps: Sequence[dict[str, object]] = ()) -> Path:
    """A run directory without evaluations."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(load("arithmetic", overrides).dump())
    if steps:
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    return run


def made_up(number: int, first: bool, second: bool, text: str = "is", **meta: object) -> Episode:
    """An episode of problem `number`, right or wrong at each attempt."""
    problem = Problem(f"p/{number}", f"What is {number} + 1?", str(number + 1), dict(meta))
    said = [str(number + 1) if right else str(number + 7) for right in (first, second)]
    attempts = [
        attempt(f"The sum of the two {text} {answer}.", right, answer=answer, tokens=8 + number % 5)
        for answer, right in zip(said, (first, second), strict=True)
    ]
    return Episode(problem, tuple(attempts), (0, 0))


def run_of(parent: Path, base: list[Episode], last: list[Episode], **more: object) -> Path:
    """A run that Stage I has left as it was, with more metrics of Stage II if they are given."""
    run = write_run(parent / "run")
    write_evaluation_of(run, "base", base)
    write_evaluation_of(run, "stage1", base)
    write_evaluation_of(run, "stage2", last, **more)
    return run


def outcomes(kept: int, won: int, lost: int, missed: int) -> list[Episode]:
    """So many problems: right and right, wrong and right, right and wrong, wrong and wrong."""
    kinds = [(True, True)] * kept + [(False, True)] * won + [(True, False)] * lost + [(False, False)] * missed
    return [made_up(number, *kind) for number, kind in enumerate(kinds)]


def wild_run(parent: Path) -> Path:
    """A run whose every text is hostile: names, settings, metrics, questions, attempts, answers, notes, tokens."""
    bad = ATTACKS["event handler"]
    steps: list[dict[str, object]] = [{"step": 0, "stage": "base", "stage_step": 0, "validation/acc/t1": 0.5}]
    for step in range(1, 31):
        row: dict[str, object] = {
            "step": step,
            "stage": "stage1" if step < 16 else bad,
            "acc/t1": 0.5,
            "acc/t2": step / 40,
        }
        row |= {"kl/t1": float("nan") if step == 3 else 0.1, "unchanged/t2": 0.99, "length/t1": 8.0, "length/t2": bad}
        if 5 <= step <= 9:
            row |= {"watch/copying": 1.0, f"watch/{ATTACKS['script']}": 1.0}
        steps.append(row)
    run = write_run(parent / "run <img src=x onerror=window.hacked=1>", [f"chat.instruction={json.dumps(bad)}"], steps)
    episodes: list[Episode] = []

    def add(name: str, question: str, first: Attempt, second: Attempt, **meta: object) -> None:
        episodes.append(Episode(Problem(name, question, question, meta), (first, second), (0, 0)))

    for name, text in ATTACKS.items():
        after = attempt(text[::-1] + " " + text, True, answer=text, finished=False)
        add(f"{name} {text}"[:60], text, attempt(text, False, answer=text), after, level=text, subject=name)
    long = "<b>word</b> " * 90_000
    add("long", "Say much.", attempt(long, True), attempt(long[::-1], False))
    add("rewritten", "?", *(attempt(" ".join(str(n * k % 7919) for k in range(3000)), True) for n in (31, 37)))
    add("empty", "", attempt("", False), attempt("", False))
    add("ungraded", "?", attempt("a", None), attempt("b", None))
    for name in ("base", "stage1", "stage2"):
        more = {
            f"by/level={bad}/acc/t1": 0.5,
            f"by/level={bad}/acc/t2": 0.7,
            ATTACKS["script"]: ATTACKS["end of script"],
        }
        write_evaluation_of(run, name, episodes, **(more if name == "stage2" else {}))
    line = {"tokens": list(ATTACKS["script"]), "kl": [0.3] * len(ATTACKS["script"])}
    kl = {"id": episodes[0].problem.id, "path": [0, 0], "attempts": [line, line]}
    (run / "eval" / "stage2.kl.jsonl").write_text(json.dumps(kl) + "\n")
    write_evaluation_of(run, 'more "><script>window.hacked=1<', episodes[:2])
    return run
