# make demo   sets everything up and renders examples/*.mid to out/
# make test   sets everything up and passes the tests, but for the trials
# make trials passes the trials: whole runs of training, of evaluation and of the notebooks
# make quick  sets everything up and passes a fast part of the tests: about a minute of processor time
# make peers  compares with another implementation of the published models
# make tf     tests what needs TensorFlow
# make beam   tests what needs Apache Beam
# make docs   builds the documentation in build/site
# make examples   renders the sounds and the picture of the README again
# make notebooks  executes the notebooks and keeps their outputs
# make data   renders a training corpus to data/ (HOURS=24)
PYTHON ?= python3
HOURS ?= 24
BIN := .venv/bin
SYSTEM := libfluidsynth3 fluidr3mono-gm-soundfont mma freedoom freedm
# Modules whose tests take seconds: the command line, files, notes, audio, and the mathematics of diffusion.
QUICK := addresses alignment arrays audio_files cli config crops doctor downloads evaluate files gin_file guidance help imports \
	loudness mel midi names note_events objective pieces samplers schedule sequence spool tokenizer train_command variations \
	vocabulary windows
export JAX_PLATFORMS ?= cpu

.PHONY: demo test trials quick lint peers tf beam docs examples notebooks data system clean

demo: .venv/ready
	$(BIN)/spectrodiff demo --out out

test: .venv/ready-dev lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not trial"

trials: .venv/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m trial

quick: .venv/ready-dev
	$(BIN)/python -m pytest -m "not slow and not trial" $(QUICK:%=tests/test_%.py)

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

peers: .venv/ready-dev .venv-peers/ready
	SPECTRODIFF_PEERS=.venv-peers/bin/python $(BIN)/python -m pytest tests/peers

tf: .venv-tf/ready
	.venv-tf/bin/python -c "import tensorflow"
	.venv-tf/bin/python -m pytest tests/test_saved_model.py tests/test_embeddings.py

beam: .venv-beam/ready
	.venv-beam/bin/python -c "import apache_beam"
	.venv-beam/bin/python -m pytest tests/test_beam.py

docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict --site-dir build/site

examples: .venv/ready-dev
	$(BIN)/python docs/examples.py

notebooks: .venv/ready-dev
	$(BIN)/python notebooks/run.py

data: .venv/ready-dev
	$(BIN)/spectrodiff prepare rendered --data_dir data --hours $(HOURS)

.venv/ready: setup.py
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and 'spectrodiff needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ...')"
	@echo "Installing 1.4 GB into .venv, which takes a minute or more"
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

# pyfluidsynth asks for an audio-device library that needs a compiler and that nothing here uses, basic-pitch for what trains
# it, though only its ONNX model is used here: hence --no-deps.
.venv/ready-dev: .venv/ready | system
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,data,render]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps pyfluidsynth basic-pitch
	touch $@

# One extra alone, read from setup.py, and nothing else of ours: mkdocstrings reads the sources without importing them.
# PyTorch is its CPU wheel where pip's indexes offer it.
.venv-peers/ready .venv-docs/ready: .venv-%/ready: .venv/ready
	test -x .venv-$*/bin/pip || $(BIN)/python -m venv .venv-$*
	$(BIN)/python -c "import importlib.metadata as m; print(*(r.split(';')[0] for r in m.requires('spectrodiff') \
		if 'extra == \"$*\"' in r), sep='\n')" >.venv-$*/requirements.txt
	.venv-$*/bin/pip install --quiet --disable-pip-version-check -r .venv-$*/requirements.txt
	touch $@

# All of .venv and what the extra adds to it, in versions of its own where it needs others.
.venv-tf/ready .venv-beam/ready: .venv-%/ready: .venv/ready-dev
	test -x .venv-$*/bin/pip || $(BIN)/python -m venv .venv-$*
	echo "import site; site.addsitedir('$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")')" \
		>"$$(.venv-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --no-warn-conflicts -e ".[$*]"
	touch $@

# What rendering a corpus needs from the system, and a browser, in which tests look at reports; each by itself, as not
# every release has both. Without the rights to install them, say so; their tests are then skipped.
system:
	@for packages in "$(SYSTEM)" chromium; do \
		if dpkg -s $$packages >/dev/null 2>&1; then :; \
		elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$packages >/dev/null \
				|| echo "could not install all of: $$packages"; \
		else echo "for rendering a corpus and for all tests, install: $$packages"; fi; \
	done

clean:
	rm -rf .venv .venv-peers .venv-tf .venv-beam .venv-docs out build *.egg-info
