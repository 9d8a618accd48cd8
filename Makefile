# make demo: the whole federation on this machine.  make federation: with real processes.  make test: the tests.
# Each installs what it needs first.

VENV   := .venv
STAMP  := $(VENV)/.installed
BIN    := $(VENV)/bin
# The first interpreter that is new enough; `make PYTHON=/path/to/python` to choose another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)

LOCK   := requirements-hospital.txt
# The same without what reads pictures and tables, which a coordinator has none of.
COORDINATOR_LOCK := requirements-coordinator.txt
READERS := highdicom|monai|nibabel|openpyxl|et-xmlfile|pyarrow|pydicom|pyjpegls
# PyTorch from another index, such as that of its builds without CUDA: make install-hospital TORCH_INDEX=URL (docs/install.md)
export TORCH_INDEX TORCH_PINS

# A folder of their own for tools that are no part of the installation.
TOOLS  := .tools
# The operating system that `make wheels` packs for is this one; another Python: make wheels PYTHON=...
WHEELS := wheels

.PHONY: help demo-told federation-told install install-hospital install-coordinator install-locked lock wheels sbom demo federation federation-prepare test faults gpu-pack docs lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train three synthetic hospitals together on this machine and write runs/demo/report.html"
	@echo "make federation          run a real SuperLink and three hospitals' clients on this machine, for one short study"
	@echo "make federation-prepare  make what these need, and print the lines that start them by hand"
	@echo "make test     run the tests"
	@echo "make faults   do the quick selection of faults to a real federation on this machine"
	@echo "make gpu-pack            make the folder .gpu for a GPU machine without network (FEDDUSSS_DATA names the data)"
	@echo "make docs     write the documentation as a site, build/docs/index.html"
	@echo "make lint     check format and style"
	@echo "make format   put format and style right"
	@echo "make install  only install, into $(VENV)"
	@echo "make install-hospital    only what a hospital needs, each file checked by its SHA-256, into $(VENV)"
	@echo "make install-coordinator only what a coordinator needs, checked the same way; TORCH_INDEX=URL: without CUDA (docs/install.md)"
	@echo "make wheels   make the folder $(WHEELS), which installs on a machine of this kind without network"
	@echo "make sbom     write sbom.json, a CycloneDX bill of materials of what a hospital installs"
	@echo "make lock     make $(LOCK) anew, after a change of pyproject.toml or constraints.txt"
	@echo "make clean    delete $(VENV), caches, runs/demo and runs/federation"

install: $(STAMP)

# Made again when the dependencies change; otherwise a second call starts at once.
$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer was found. Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer. Name one that is: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear "$(VENV)" || { \
		echo "Python could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "Installing into $(VENV) (the first time takes some minutes) ..."
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch "$@"

# Without the tools of developers, and nothing whose hash is not in the file. `make install` later adds these tools.
install-hospital: INSTALLED := $(LOCK)
install-hospital: install-locked

install-coordinator: INSTALLED := $(COORDINATOR_LOCK)
install-coordinator: install-locked

install-locked:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer was found. Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear "$(VENV)" || { \
		echo "Python could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "Installing into $(VENV) (the first time takes some minutes) ..."
	@sh deploy/install.sh "$(BIN)/python" $(INSTALLED) -e .

$(TOOLS)/.installed:
	@"$(PYTHON)" -m venv --clear "$(TOOLS)"
	@"$(TOOLS)/bin/python" -m pip install -qq --disable-pip-version-check uv cyclonedx-bom 'setuptools>=77' wheel
	@touch "$@"

lock: $(TOOLS)/.installed
	@head -2 $(LOCK) > $(LOCK).new
	@"$(TOOLS)/bin/uv" pip compile -q pyproject.toml --extra dicom -c constraints.txt --generate-hashes --universal --no-build \
		--python-version 3.11 --no-header --no-annotate --no-emit-index-url -o $(TOOLS)/lock.txt
	@cat $(TOOLS)/lock.txt >> $(LOCK).new && mv $(LOCK).new $(LOCK)
	@$(MAKE) -s $(COORDINATOR_LOCK)

$(COORDINATOR_LOCK): $(LOCK)
	@{ echo "# $(LOCK) without what reads pictures and tables, for a coordinator that only runs studies: 'make lock' makes both."; \
		awk -v out='^($(READERS))==' 'NR > 2 {if (/^[a-z0-9]/) left = $$0 ~ out; if (!left) print}' $(LOCK); } > $@.new && mv $@.new $@

# LOCK=FILE packs another list, such as a few lines of it to try this out.
wheels: $(TOOLS)/.installed
	@rm -rf "$(WHEELS)" && mkdir "$(WHEELS)"
	@"$(TOOLS)/bin/python" -m pip download -q --disable-pip-version-check --only-binary :all: --require-hashes -r $(LOCK) -d "$(WHEELS)"
	@"$(TOOLS)/bin/python" -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w "$(WHEELS)" .
	@cp $(LOCK) "$(WHEELS)/requirements.txt"
	@cd "$(WHEELS)" && sha256sum * > SHA256SUMS && sha256sum SHA256SUMS
	@echo "compare the line above on the other machine, in this folder: sha256sum SHA256SUMS; sha256sum -c --quiet SHA256SUMS"

sbom: $(TOOLS)/.installed
	@"$(TOOLS)/bin/cyclonedx-py" requirements $(LOCK) --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json
	@echo "sbom.json: written"

demo: demo-told $(STAMP)
	@"$(BIN)/python" -m server simulate configs/demo.yaml --out runs/demo --force
	@echo "Report: file://$(CURDIR)/runs/demo/report.html"

# Before anything is installed: what will happen, and how long it takes.
demo-told:
	@echo "Three synthetic hospitals train one model together on this machine: 12 rounds of pretraining, 20 of segmentation."
	@echo "1 to 4 minutes on two idle cores; the first time some minutes more, and 6 GB in $(VENV), to install what it needs."
	@echo "At the end: runs/demo/report.html. Ctrl-C stops it; $(BIN)/feddusss simulate demo --out runs/demo --resume goes on."

federation-told:
	@echo "A real SuperLink and three hospitals' clients on this machine, for one study: 8 rounds of pretraining, 10 of segmentation."
	@echo "1 to 3 minutes on two idle cores, 3.5 GB of memory; the first time some minutes more, and 6 GB in $(VENV), to install."
	@echo "At the end: runs/federation/report.html, and nothing left running. Ctrl-C ends all of it, and says how to go on."

# Another port than 9091: make federation PORT=9191
federation: federation-told $(STAMP)
	@"$(BIN)/python" -m server federation --force $(if $(PORT),--port $(PORT))

federation-prepare: $(STAMP)
	@"$(BIN)/python" -m server federation --prepare $(if $(PORT),--port $(PORT))

test: $(STAMP)
	@"$(BIN)/python" -m pytest

faults: $(STAMP)
	@"$(BIN)/python" benchmarks/faults.py --quick

gpu-pack: $(STAMP)
	@"$(BIN)/python" -m benchmarks.gpu.pack --out .gpu

# Built without network, and read without one.
docs: $(STAMP)
	@"$(BIN)/python" -c 'import mkdocs, material, mkdocstrings_handlers.python' 2>/dev/null || \
		"$(BIN)/python" -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs build --quiet --strict
	@echo "Documentation: file://$(CURDIR)/build/docs/index.html"

lint: $(STAMP)
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/ruff" check .

format: $(STAMP)
	@"$(BIN)/ruff" check --fix .
	@"$(BIN)/ruff" format .

clean:
	rm -rf "$(VENV)" "$(TOOLS)" "$(WHEELS)" sbom.json build dist *.egg-info .pytest_cache .ruff_cache runs/demo runs/federation
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
