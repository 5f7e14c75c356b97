# Two commands do everything: `make demo` and `make test`.
# Each makes .venv when it is missing or older than the package's description, and starts at once otherwise.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# every command runs in .venv, whatever environment is active
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test notebooks export readme clean

demo: $(VENV)/demo.stamp            ## regularize the attention of one scene; writes the folder demo/
	attnbootreg demo --out demo

test: $(VENV)/dev.stamp             ## every notebook, then every test
	nbdev_test --n_workers 2
	python -m pytest tests

notebooks: $(VENV)/dev.stamp        ## run the notebooks and store their outputs
	jupyter nbconvert --to notebook --execute --inplace nbs/*.ipynb nbs/tutorials/*.ipynb
	nbdev_clean

export: $(VENV)/dev.stamp           ## write attnbootreg/ from nbs/
	nbdev_export

readme: $(VENV)/dev.stamp           ## write README.md and its pictures from nbs/index.ipynb
	jupyter nbconvert --to markdown --output-dir . --output README --NbConvertApp.output_files_dir=nbs/images nbs/index.ipynb

clean:                              ## forget the environment and what was made
	rm -rf $(VENV) demo _docs _proc build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: settings.ini setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/dev.stamp: settings.ini setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp
