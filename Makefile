# make demo | make test | make check | make bench: each sets up what it needs in .venv, quickly when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# threads that wait without spinning: on a machine that others use too, spinning makes a step several times slower
export OMP_WAIT_POLICY ?= PASSIVE
PARTS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml contrib/*/pyproject.toml))
EDITABLE := $(foreach part,$(PARTS),-e ./$(part))
UV := $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt

.PHONY: demo test test-slow check pictures bench catalogue clean

# torch comes first and by its pin, through pip: any other order may bring several GB of CUDA packages
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch uv
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(addsuffix /pyproject.toml,$(PARTS))
	$(UV) -e . $(EDITABLE)
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(UV) -e ".[dev,peers]" $(EDITABLE) -e "./contrib/testbed[graphs,sentences,text,zoo]"
	touch $@

demo: $(VENV)/.installed  ## train source-only and DANN on handwritten digits, clean -> photo; write a page with Grad-CAM pictures
	$(BIN)/graft run dann --stage source-only --stage dann

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev  ## claims and other long runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/catalogue.py --check

pictures: $(VENV)/.dev  ## the pictures of the test bed in docs/images/testbed
	$(BIN)/python tools/pictures.py

bench: $(VENV)/.dev  ## races against peers, one process, ratios
	$(BIN)/python -m pytest -q -m bench -s

catalogue: $(VENV)/.installed  ## which distribution provides which method, for the message about a missing one
	$(BIN)/python tools/catalogue.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .benchmarks
