# make quickstart   set up, train a small RT-DETR on synthetic data, evaluate it, draw a picture
# make test         set up and run the test suite
# make test-slow    the longer tests (full-length trainings), too
# Both set-ups make .venv; PYTHON=/path/to/python uses that interpreter and its packages as they are.
# TORCH names what pip installs as PyTorch (default: the tested CPU build).

TORCH ?= torch==2.13.0
PYTHON ?=
ifeq ($(PYTHON),)
PY := .venv/bin/python
READY := .venv/.ready
else
PY := $(PYTHON)
READY :=
endif
QUICK := work_dirs/quickstart

.PHONY: quickstart test test-slow lint clean

quickstart: $(READY)
	$(PY) tools/make_shapes.py data/shapes --layouts coco
	$(PY) tools/train.py configs/rtdetr_shapes.py --seed 0 --work-dir $(QUICK)
	$(PY) tools/test.py configs/rtdetr_shapes.py $(QUICK)/best.pth --work-dir $(QUICK)
	$(PY) demo/image_demo.py data/shapes/val/00000[0-8].jpg --config configs/rtdetr_shapes.py --checkpoint $(QUICK)/best.pth --out $(QUICK)/pictures

test: $(READY)
	$(PY) -m pytest -n 2 -m "not slow" tests

test-slow: $(READY)
	$(PY) -m pytest tests

lint: $(READY)
	$(PY) -m ruff check .

clean:
	rm -rf .venv data/shapes $(QUICK)

.venv/.ready: setup.py requirements/runtime.txt requirements/tests.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "mmvit needs Python 3.10 or newer; python3 is $$(python3 --version). Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 1; }
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e .[tests]
	touch $@
