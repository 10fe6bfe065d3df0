# The two commands of the README: `make demo` and `make test`. The rest is for developers.
# Both install what they need on Debian and Ubuntu (packages when root or by sudo, the rest in .venv) and build.

PYTHON := .venv/bin/python
# Making links and loading XDP programs needs root; everything else does not.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=NO_COLOR,TERM)

.PHONY: demo test test-nic test-debian12 test-debian13 conformance lint format bench bench-quick docs stress fuzz mutants wheel faults soak clean

demo:
	@scripts/prepare.sh plot
	@$(AS_ROOT) $(PYTHON) demo/demo.py

test:
	@scripts/prepare.sh dev
	@$(MAKE) --no-print-directory lint
	@if [ "$$(id -u)" != 0 ]; then echo "Not root: the tests with real packets will be skipped (sudo make test runs them)."; fi
	@$(PYTHON) -m pytest

# On emulated NICs with zero-copy, in a guest of its own; some minutes.
test-nic:
	@scripts/prepare.sh dev
	@$(AS_ROOT) $(PYTHON) tests/nic/machine.py

# The cases of docs/conformance.md, on veth and then on emulated NICs; writes that page. Some minutes.
conformance:
	@scripts/prepare.sh dev
	@$(AS_ROOT) env AFXDP_CONFORMANCE_RESULTS=tests/conformance/last.json \
		$(PYTHON) -m pytest -q --afxdp-require tests/conformance
	@$(AS_ROOT) $(PYTHON) tests/nic/machine.py tests/conformance
	@$(PYTHON) tests/conformance/conform_table.py tests/conformance/last.json tests/nic/last-conformance.json

# The tests with another Debian's libraries, compilers and Python, in a root directory of its own; some minutes, as root.
test-debian12:
	@scripts/prepare.sh dev
	@$(AS_ROOT) $(PYTHON) tests/packaging/worlds.py bookworm

test-debian13:
	@scripts/prepare.sh dev
	@$(AS_ROOT) $(PYTHON) tests/packaging/worlds.py trixie

lint:
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

format:
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

bench:
	@scripts/prepare.sh test
	@$(AS_ROOT) $(PYTHON) -m benchmarks.suite --output benchmarks/results/suite.json

# The figures that matter, within two minutes; writes nothing.
bench-quick:
	@scripts/prepare.sh test
	@$(AS_ROOT) $(PYTHON) -m benchmarks.suite --quick

# The book, as web pages: docs/_build/html/index.html.
docs:
	@scripts/prepare.sh docs
	@$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

# A wheel with libxdp, libbpf and libelf inside, and the sdist it is made from, in dist/.
wheel:
	@scripts/prepare.sh package
	@$(PYTHON) scripts/wheel.py dist

clean:
	rm -rf build dist docs/_build *.egg-info .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf afxdp_pool/_bpf afxdp_pool/_native/_ffi.c afxdp_pool/_native/*.so tests/native/build tests/fuzz/build benchmarks/native/build

# A hundred million remote returns under ThreadSanitizer; some minutes.
stress:
	@scripts/prepare.sh test
	@tests/native/stress.sh

# Ten minutes of any input to rings, pools, the loop and the packet parsers, under the sanitizers.
fuzz:
	@scripts/prepare.sh dev,fuzz
	@$(PYTHON) tests/fuzz/fuzzing.py --seconds 600

# Bugs planted one at a time, each to be seen by a test; ten minutes, as root. Writes docs/mutants.md.
mutants:
	@scripts/prepare.sh dev
	@$(AS_ROOT) $(PYTHON) tests/mutants/mutants.py

# Every fault of tests/fault, with 200 kills; then the table of docs/reliability.md. A quarter of an hour, as root.
faults:
	@scripts/prepare.sh test
	@$(AS_ROOT) env AFXDP_FAULT_ROUNDS=$${AFXDP_FAULT_ROUNDS:-200} AFXDP_FAULT_RESULTS=tests/fault/results.json \
		$(PYTHON) -m pytest -q --afxdp-require tests/fault
	@$(PYTHON) scripts/fault_table.py

# Everything at once, at full load and with faults all the while, for SECONDS; then what docs/reliability.md says of it.
soak:
	@scripts/prepare.sh test
	@$(AS_ROOT) env PYTHONPATH=tests/veth:tests/fault $(PYTHON) tests/soak/soak.py --seconds $(or $(SECONDS),1800) \
		--output benchmarks/results/soak.json
	@$(PYTHON) scripts/fault_table.py
