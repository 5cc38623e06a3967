"""Deterministic weights and inputs, reports, and the checks of whole networks."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOLERANCE = 5e-5


def fill_values(key: str, shape: list[int]) -> np.ndarray:
    """The value of state-dict entry `key`: seeded by the name alone, scaled by fan-in; norm scales and variances near 1."""
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith("running_var"):
        normal = 1 + 0.1 * np.abs(normal)
    elif len(shape) >= 2:
        normal = normal / np.sqrt(np.prod(shape[1:]))
    else:
        normal = 0.1 * normal + (1 if key.endswith("weight") else 0)
    return np.asarray(normal, dtype=np.float32)


def fill_image(shape: list[int], seed: int = 0) -> np.ndarray:
    """A standard-normal float32 array."""
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def probe_index(size: int, count: int = 64) -> np.ndarray:
    """Flat positions at which an output of `size` elements is recorded."""
    return np.random.RandomState(size % (2**32)).randint(0, size, count)


@dataclass
class Report:
    """What a golden showed. `error` is the largest deviation relative to the output's absmax, `allowed` its limit."""

    name: str
    cases: int = 0
    error: float = 0.0
    worst: str = ""
    unused: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and not self.unused and self.cases > 0

    def compare(self, label: str, value: Any, expected: Any, absmax: float | None = None, tolerance: float = TOLERANCE) -> None:
        """Record |value - expected| / absmax; more than `tolerance` fails."""
        value, expected = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        if value.shape != expected.shape:
            self.failures.append(f"{label}: shape {value.shape}, expected {expected.shape}")
            return
        if not value.size:
            return
        scale = absmax or float(np.abs(expected).max()) or 1.0
        error = float(np.max(np.abs(value - expected))) / scale
        if not error <= self.error:  # a NaN counts as the worst
            self.error, self.worst = error, label
        if not error <= tolerance:
            self.failures.append(f"{label}: error {error:.2e} of absmax, allowed {tolerance:.0e}")

    def equal(self, label: str, value: Any, expected: Any) -> None:
        """Fail unless both are the same."""
        if value != expected:
            self.failures.append(f"{label}: {str(value)[:120]}, expected {str(expected)[:120]}")

    def output(self, label: str, value: Any, golden: dict[str, Any], tolerance: float) -> None:
        """Compare shape, mean, standard deviation and probes of an output tensor or array."""
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
        if list(array.shape) != golden["shape"]:
            self.failures.append(f"{label}: shape {list(array.shape)}, expected {golden['shape']}")
            return
        probes = array.reshape(-1)[probe_index(array.size)]
        for part, got, want in (
            ("probes", probes, golden["probes"]),
            ("mean", array.mean(), golden["mean"]),
            ("std", array.std(), golden["std"]),
        ):
            self.compare(f"{label} {part}", got, want, golden["absmax"], tolerance)

    def line(self) -> str:
        """One line: name, cases, largest relative error, unused keys, pass or fail."""
        verdict = "pass" if self.passed else "FAIL"
        cases = f"{self.cases} case{'s' if self.cases != 1 else ' '}"
        text = f"{verdict}  {self.name:<44} {cases}  error {self.error:.1e}  unused keys {len(self.unused)}"
        details = self.failures[:3] + ([f"never used: {', '.join(self.unused[:3])}"] if self.unused else [])
        return text + "".join(f"\n      {d}" for d in details)


def tolerance_of(golden: dict[str, Any], case: dict[str, Any], output: str) -> float:
    """5e-5, or 1e-6 for float64 goldens; three times the official float32 rounding where that is recorded and larger."""
    base = 1e-6 if golden.get("dtype") == "float64" else TOLERANCE
    rounding = case.get("fp32_vs_fp64", golden.get("fp32_vs_fp64", 0.0))
    if isinstance(rounding, dict):
        rounding = rounding.get(output, 0.0)
    return max(base, 3 * float(rounding))


def official_state(golden: dict[str, Any]) -> dict[str, Any]:
    """The filled part of the official state dict, as tensors."""
    import torch

    state = {key: torch.from_numpy(fill_values(key, shape)) for key, shape in golden["filled"].items()}
    for override in golden.get("fill_overrides", ()):
        for key in [k for k in state if re.search(override["keys"], k)]:
            state[key] = (
                torch.full_like(state[key], override["constant"]) if "constant" in override else state[key] * override["scale"]
            )
    return state


def load_official(report: Report, model: Any, convert: Callable, golden: dict[str, Any]) -> None:
    """Fill, convert and load strictly; ``kept`` buffers must be computed by the model or dropped by `convert`."""
    import torch

    state = convert(official_state(golden))
    known = model.state_dict()
    problems = model.load_state_dict(state, strict=False)
    missing = [
        k for k in problems.missing_keys if k in dict(model.named_parameters()) or k.endswith(("running_mean", "running_var"))
    ]
    kept = convert({k: torch.empty(shape) for k, shape in golden.get("kept", {}).items()})
    unexpected = [*problems.unexpected_keys, *(k for k in kept if k not in known and not k.endswith("num_batches_tracked"))]
    report.equal("missing keys", missing, [])
    report.equal("unexpected keys", unexpected, [])
    if "params" in golden:
        report.equal("parameters", sum(p.numel() for p in model.parameters()) + frozen_affines(model, golden), golden["params"])


def frozen_affines(model: Any, golden: dict[str, Any]) -> int:
    """Affines of frozen norms, where the golden counts them as parameters."""
    from mmvit.layers.conv import FrozenBatchNorm2d

    count = sum(m.weight.numel() + m.bias.numel() for m in model.modules() if isinstance(m, FrozenBatchNorm2d))
    return count if golden["params"] == sum(p.numel() for p in model.parameters()) + count else 0


def inputs_of(case: dict[str, Any]) -> list[Any]:
    """The case's input tensors in float64."""
    import torch

    specs = (
        [case["input"]]
        if "input" in case
        else list(case["inputs"].values() if isinstance(case["inputs"], dict) else case["inputs"])
    )
    return [torch.from_numpy(fill_image(s["shape"], s["seed"])).double() for s in specs]


def check_network(
    report: Report, golden: dict[str, Any], model: Any, convert: Callable, run: Callable, training_only: set[str] = frozenset()
) -> None:
    """Run every case: ``run(model, inputs, case) -> {output: tensor}``; the gradients find unused parameters."""
    import torch

    load_official(report, model, convert, golden)
    if report.failures:
        return
    model.double().eval().requires_grad_(True)
    used: set[str] = set()
    for case in golden["cases"]:
        outputs = run(model, inputs_of(case), case, report)
        for name, expected in case["outputs"].items():
            if name not in outputs:
                report.failures.append(f"output {name!r} is not computed")
                continue
            report.output(name, outputs[name], expected, tolerance_of(golden, case, name))
        loss = sum(
            (o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view_as(o)).sum()
            for o in outputs.values()
            if o.requires_grad
        )
        model.zero_grad()
        loss.backward()
        used |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        report.cases += 1
    suspects = [n for n, _ in model.named_parameters() if n not in used and not n.startswith(tuple(training_only))]
    report.unused = [n for n in suspects if not changes_output(model, n, golden["cases"][0], run)]


def changes_output(model: Any, name: str, case: dict[str, Any], run: Callable) -> bool:
    """Whether another value of parameter `name` changes some output (no gradient reaches rounded positions, say)."""
    import torch

    with torch.no_grad():
        parameter = model.get_parameter(name)
        saved, before = parameter.clone(), run(model, inputs_of(case), case, Report(""))
        parameter.copy_(torch.from_numpy(fill_values(f"another {name}", parameter.shape)))
        after = run(model, inputs_of(case), case, Report(""))
        parameter.copy_(saved)
    return any(not torch.equal(before[key], after[key]) for key in before)


def check_backbone(report: Report, golden: dict[str, Any], name: str) -> None:
    """Outputs are named by stride (s8, s16, ...) or by stage (stage0, stage1, ...)."""
    from mmvit.backbones import create_backbone

    recorded = {key for case in golden["cases"] for key in case["outputs"]}
    stages = sorted(int(key[5:]) for key in recorded if re.fullmatch(r"stage\d+", key))
    model = create_backbone(name, out_indices=stages or None)
    names = [f"stage{i}" for i in stages] or [f"s{stride}" for _, stride in model.feature_info]
    report.equal("outputs", sorted(recorded), sorted(names))

    def run(model, inputs, case, report):
        return dict(zip(names, model(inputs[0])))

    check_network(report, golden, model, model.convert, run)
    check_parts(report, golden, model)


def check_parts(report: Report, golden: dict[str, Any], model: Any) -> None:
    """Compare the modules named by ``submodule_calls``, called by themselves, once the network is filled and in float64."""
    import torch

    for part, call in () if report.failures else golden.get("submodule_calls", {}).items():
        x = torch.from_numpy(fill_image(call["input"]["shape"], call["input"]["seed"])).double()
        report.output(part, model.get_submodule(part)(x), call["output"], TOLERANCE)


def check_keys(report: Report, golden: dict[str, Any], model: Any) -> None:
    """Names, shapes and counts of the official state dict: filled, it must load strictly."""
    if golden.get("trainable") is not None:
        report.equal("trainable", sum(p.numel() for p in model.parameters() if p.requires_grad), golden["trainable"])
    running = {k: s for k, s in golden["buffers"].items() if is_filled(k)}
    kept = {k: s for k, s in golden["buffers"].items() if k not in running}
    load_official(report, model, model.convert, {**golden, "filled": {**golden["parameters"], **running}, "kept": kept})
    report.cases += 1


def is_filled(buffer: str) -> bool:
    """Whether a buffer holds learnt values: running statistics and frozen affines."""
    return buffer.endswith(("running_mean", "running_var", ".weight", ".bias"))
