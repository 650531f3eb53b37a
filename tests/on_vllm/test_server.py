"""vLLM as a server: adapters by file, the wrong server, and one that is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import SHORT, Server, score

from score_rl.chat import Chat
from score_rl.engines import make_engine
from score_rl.errors import ConfigError, SyncError
from score_rl.loading import load_policy, load_tokenizer
from score_rl.settings import load
from score_rl.synced import SyncedEngine, shaken

CPU_ALONE = {"ACCELERATE_USE_CPU": "true"}
STEPS = ["stages.0.steps=6", "stages.1.steps=2"]


def arguments(server: Server, model: Path, run: Path) -> list[str]:
    told = [f"model.path={model}", "model.lora.rank=4", "engine.kind=vllm_server", f"engine.url={server.url}"]
    told += [f"engine.adapters={run.parent / 'adapters'}", "engine.retries=2"]
    return ["train", "arithmetic", *told, *SHORT, *STEPS, "-o", str(run)]


def engine_of(server: Server, model: Path, adapters: Path) -> SyncedEngine:
    told = [f"model.path={model}", "model.lora.rank=4", "engine.kind=vllm_server", f"engine.url={server.url}"]
    settings = load("arithmetic", [*told, f"engine.adapters={adapters}"])
    tokenizer = load_tokenizer(settings.model)
    made = make_engine(settings, load_policy(settings.model, tokenizer), Chat(tokenizer, settings.chat))
    assert isinstance(made, SyncedEngine)
    return made


def test_adapters_reach_the_server_and_a_stale_one_is_noticed(server: Server, wide: Path, tmp_path: Path):
    engine = engine_of(server, wide, tmp_path)
    for _ in range(3):
        engine.prove()
        engine.push()
        engine.compare()
    assert engine.gap is not None and engine.gap < 1e-4
    assert len(list(tmp_path.glob("*/*"))) == 1  # old ones are deleted
    with shaken(engine.policy), pytest.raises(SyncError, match="weights did not reach it"):
        engine.compare()


def test_a_server_with_another_base_model_is_refused(server: Server, wide: Path, tmp_path: Path):
    other = load_policy(load("arithmetic", [f"model.path={wide}"]).model)
    with shaken(other):
        other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"nats a token from model\.path's; serve that model"):
        engine_of(server, tmp_path / "other", tmp_path)


def test_a_server_with_another_tokenizer_is_refused(server: Server, tiny_model: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"another tokenizer than model\.path"):
        engine_of(server, tiny_model, tmp_path)


def test_two_processes_with_a_server_take_the_steps_of_one(server: Server, wide: Path, tmp_path: Path):
    steps = []
    for number in (1, 2):
        run = tmp_path / str(number)
        short = [word for word in arguments(server, wide, run) if word not in STEPS]
        told = [*short, "stages.0.steps=2", "stages.1.steps=2"]
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", f"--nproc-per-node={number}"]
        done = subprocess.run(
            [*command, "-m", "score_rl", *told], capture_output=True, text=True, env=os.environ | CPU_ALONE
        )
        assert done.returncode == 0, done.stderr[-2000:]
        steps.append(steps_of(run)[1:])
    assert len(steps[0]) == len(steps[1]) == 4
    for one, two in zip(*steps, strict=True):
        # The same attempts; the gradients differ by how the rows are added up.
        assert one["acc/t2"] == two["acc/t2"]
        assert two["optim/grad_norm"] == pytest.approx(one["optim/grad_norm"], rel=1e-4)


def test_both_stages_train_and_go_on_after_the_server_was_killed(wide: Path, tmp_path: Path):
    run = tmp_path / "run"
    first = Server(wide, tmp_path / "first.txt")
    try:
        first.wait()
        command = [sys.executable, "-W", "ignore", "-m", "score_rl", *arguments(first, wide, run)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as training:
            assert training.stderr is not None
            said = []
            for line in training.stderr:
                said.append(line)
                if line.startswith("stage1 1/6"):
                    first.kill()
        assert training.returncode == 2, "".join(said[-20:])
    finally:
        first.kill()
    assert f"engine.url={first.url}: no answer after 2 retries" in said[-1] and "start it again" in said[-1]
    assert len(steps_of(run)) < 7  # those of the first stage and the base's line
    assert score(*arguments(first, wide, run)).stderr.splitlines()[-1].count("no server there") == 1

    second = Server(wide, tmp_path / "second.txt", port=first.port)
    try:
        second.wait()
        done = score(*arguments(second, wide, run))
    finally:
        second.kill()
    assert done.returncode == 0, done.stderr[-2000:]
    steps = steps_of(run)
    assert [step["step"] for step in steps] == list(range(9))
    assert max(step[f"engine_gap/t{k}"] for step in steps[1:] for k in (1, 2)) < 1e-4


def steps_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
