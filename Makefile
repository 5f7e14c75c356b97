# Two commands do everything: `make demo` and `make test`.
# Each makes .venv when it is missing or older than the package's description, and starts at once otherwise.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: demo test lint bench notebooks export readme pages clean

demo: $(VENV)/demo.stamp            ## regularize the attention of one scene; writes the folder demo/
	$(BIN)/attnbootreg demo --out demo

test: lint                          ## rules and types, then every notebook, then every test
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2  # two notebooks at a time, a core each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests  # two files at a time

lint: $(VENV)/dev.stamp             ## what can be seen without running anything; pyproject.toml says which rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/format.py --check
	$(BIN)/mypy

bench: $(VENV)/demo.stamp           ## time and memory beside a naive pipeline and plain forward passes; a quarter of an hour
	$(BIN)/python benchmarks/bench_speed.py --out speed.json

notebooks: $(VENV)/dev.stamp        ## run the notebooks and store their outputs
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.store_widget_state=False \
		nbs/*.ipynb nbs/tutorials/*.ipynb
	$(BIN)/nbdev_clean

export: $(VENV)/dev.stamp           ## write attnbootreg/ from nbs/
	$(BIN)/nbdev_export

readme: $(VENV)/dev.stamp           ## write README.md and its pictures from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --config tools/readme.py --output-dir . nbs/index.ipynb

pages: $(VENV)/dev.stamp            ## write the reference, the gallery and the badges of tutorials from the package and the notebooks
	$(BIN)/python tools/reference.py
	$(BIN)/python tools/gallery.py
	$(BIN)/python tools/badges.py

clean:                              ## forget the environment and what was made
	rm -rf $(VENV) demo _docs _proc build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: settings.ini setup.py pyproject.toml $(BIN)/python
	@echo "installing into $(VENV); the first time this downloads PyTorch, which takes some minutes"
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/dev.stamp: settings.ini setup.py pyproject.toml $(BIN)/python
	@echo "installing into $(VENV); the first time this downloads PyTorch, which takes some minutes"
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $(VENV)/demo.stamp $@
