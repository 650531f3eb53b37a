"""What a process knows of the others from its launcher, and what each takes of the work."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import make_policy

import score_rl
from score_rl.batch import Row
from score_rl.errors import ConfigError, DataError, ProcessError, ProcessLost
from score_rl.interrupts import heeding_signals
from score_rl.launcher import IGNORED, launched
from score_rl.parallel import Parallel, check_parallel
from score_rl.processes import Group, start
from score_rl.settings import load

LAUNCH = Path(score_rl.__file__).parent / "recipes" / "launch"
NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*NAMES, *IGNORED, "SLURM_STEP_NUM_TASKS", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_a_process_is_alone(environment: pytest.MonkeyPatch) -> None:
    group = start()
    assert (group.rank, group.size, group.is_first) == (0, 1, True)
    assert group.gather(lambda: 5) == [5] and group.first(lambda: 6) == 6 and group.largest(7) == 7
    with pytest.raises(DataError), group.together():
        raise DataError("as it was")


def test_a_launcher_says_how_many_there_are(environment: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "1"), ("MASTER_ADDR", "here"), ("MASTER_PORT", "1")):
        environment.setenv(name, value)
    assert launched() == 4


@pytest.mark.parametrize("counter", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_copies_that_do_not_know_each_other_are_refused(environment: pytest.MonkeyPatch, counter: str) -> None:
    environment.setenv(counter, "1")
    assert launched() == 1
    environment.setenv(counter, "8")
    with pytest.raises(ProcessError, match=f"{counter}=8: that many copies would each train for themselves; start it"):
        launched()


def test_accelerate_that_starts_one_process_of_several_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert launched() == 1
    environment.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ProcessError, match="asked for several processes and has started one"):
        launched()


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("ACCELERATE_USE_FSDP", "true", "parallel.kind=fsdp"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "parallel.kind=zero2 or zero3"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "model.dtype"),
    ],
)
def test_what_accelerate_would_do_itself_is_refused(
    environment: pytest.MonkeyPatch, name: str, value: str, setting: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(ProcessError, match=f"{name}={value}: accelerate only starts processes here; .* set {setting}"):
        launched()


@pytest.mark.parametrize("name", ["gpus", "machines"])
def test_the_configurations_of_accelerate_ask_for_nothing_that_is_ignored(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "no"
    assert (config.fsdp_config, config.deepspeed_config) == ({}, {})
    assert config.num_processes == 8 * config.num_machines


def test_a_world_without_a_place_to_meet_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("RANK", "0")
    with pytest.raises(ProcessError, match="WORLD_SIZE=2 is set and MASTER_ADDR, MASTER_PORT is not"):
        launched()


@pytest.mark.parametrize(("number", "size"), [(7, 3), (2, 4), (0, 2), (64, 8)])
def test_shares_are_contiguous_and_differ_by_one_at_most(number: int, size: int) -> None:
    shares = [Group(rank, size).share(number) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(number))
    lengths = sorted(map(len, shares))
    assert lengths[-1] - lengths[0] <= 1


def test_each_row_goes_to_one_process_and_all_get_about_as_many_tokens() -> None:
    rows = [Row(n, (0,) * length, (1,) * length) for n, length in enumerate([9, 1, 7, 3, 5, 5, 2, 8])]
    shares = []
    for rank in range(3):
        parallel = Parallel(make_policy(), Group())
        parallel.group = Group(rank, 3)
        shares.append(parallel.own(rows))
    assert sorted(row for share in shares for row in share) == rows
    # 40 tokens: 9 + 3 + 2, 8 + 5 and 7 + 5 + 1.
    assert [sum(len(row.ids) for row in share) for share in shares] == [14, 13, 13]


def test_fewer_questions_than_processes_are_refused() -> None:
    settings = load("arithmetic", ["stages.1.problems=4"])
    check_parallel(settings, Group(0, 4))
    with pytest.raises(ConfigError, match=r"stages.1.problems=4: fewer questions a step than the 5 processes"):
        check_parallel(settings, Group(0, 5))


@pytest.mark.parametrize("change", ["optim.kind=adamw_8bit", "model={quantize: 4bit, lora: {}}"])
def test_what_cannot_be_sharded_is_refused(change: str) -> None:
    check_parallel(load("arithmetic", [change]), Group(0, 2))
    with pytest.raises(ConfigError, match=r"cannot be sharded; set parallel.kind=ddp, or"):
        check_parallel(load("arithmetic", [change, "parallel.kind=fsdp"]), Group(0, 2))


def test_an_engine_that_was_not_tried_with_several_processes_is_refused() -> None:
    settings = load("arithmetic", ["engine.kind=vllm"])
    check_parallel(settings, Group(0, 1))
    with pytest.raises(ConfigError, match=r"engine.kind=vllm: not tried with 2 processes; set"):
        check_parallel(settings, Group(0, 2))


def test_a_process_alone_computes_where_accelerate_says(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ACCELERATE_USE_CPU", "true")
    assert start().device == torch.device("cpu")


@pytest.fixture
def own_handler() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def ended() -> int:
    """The id that a process had which has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_the_launchers_signal_waits_for_the_step_while_all_are_there(own_handler: None) -> None:
    group, said = Group(0, 2), []
    group.neighbours = [os.getpid(), os.getppid()]
    with heeding_signals(said.append, group) as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.signal == signal.SIGTERM
    assert said == ["finishing this step, then saving (once more to stop at once)"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_launchers_signal_ends_a_process_at_once_when_another_is_gone(own_handler: None) -> None:
    group = Group(0, 2)
    group.neighbours = [os.getpid(), ended()]
    with pytest.raises(ProcessLost, match="another process of the run is gone"), heeding_signals(print, group):
        signal.raise_signal(signal.SIGTERM)


def test_the_launchers_signal_does_not_end_a_process_that_has_yet_to_say_what_it_lost(own_handler: None) -> None:
    with pytest.raises(ProcessLost), heeding_signals(print, Group(0, 2)):
        raise ProcessLost("another process of the run is gone")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
