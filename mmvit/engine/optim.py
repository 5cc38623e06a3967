"""Optimizer: parameter groups by ordered name rules, mixed precision, and steps that are skipped when they are not finite."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from mmvit.errors import UserError, did_you_mean
from mmvit.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RULE_KEYS = ("pattern", "lr", "lr_mult", "weight_decay", "decay_mult", "optional")
PARAMWISE_KEYS = ("rules", "layer_decay", "decay_vectors", "decay_norms")
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ParamRuleConstructor:
    """Puts each trainable parameter in a group by the first rule whose pattern is found in its name.

    ``paramwise_cfg = dict(rules=[dict(pattern=r"^backbone\\.", lr_mult=0.1), dict(pattern="bias$", decay_mult=0), ...])``

    A rule sets ``lr`` or ``lr_mult`` (times the base learning rate) and ``weight_decay`` or ``decay_mult``; what it leaves
    out, and a parameter without rule, keeps the optimizer's values. Parameters with equal learning rate and weight decay
    share a group. A rule that fits no name at all is an error, unless it says ``optional=True`` (for rules on parts that
    another backbone lacks).

    Besides ``rules``, `paramwise_cfg` has

    * ``layer_decay``: layer-wise learning-rate decay by this factor. A parameter at depth d of a backbone with n layers
      (``model.layer_depth(name)``, ``model.num_layers``) learns at ``rate ** (n + 1 - d)`` of what the rules say; parts
      without depth learn at the full rate.
    * ``decay_vectors=False``: no weight decay for parameters with one dimension (biases, norms, layer scales).
    * ``decay_norms=False``: no weight decay for the parameters of normalisation layers; other biases keep theirs.

    Names in ``model.no_weight_decay()`` (position tables) have no weight decay, whatever the rules say.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.optim_wrapper_cfg.pop("optimizer"))
        settings = dict(paramwise_cfg or {})
        for key in settings:
            if key not in PARAMWISE_KEYS:
                raise UserError(
                    f"optim_wrapper.paramwise_cfg.{key}: nothing reads this key.{did_you_mean(key, PARAMWISE_KEYS)} "
                    f"ParamRuleConstructor reads {', '.join(PARAMWISE_KEYS)}."
                )
        self.rules: list[dict] = [dict(rule) for rule in settings.get("rules") or ()]
        self.decay_vectors: bool = settings.get("decay_vectors", True)
        self.decay_norms: bool = settings.get("decay_norms", True)
        self.layer_decay: float = settings.get("layer_decay") or 1.0
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optim_wrapper.paramwise_cfg.layer_decay={self.layer_decay}: it must lie between 0 and 1.")
        for i, rule in enumerate(self.rules):
            for key in rule:
                if key not in RULE_KEYS:
                    raise UserError(
                        f"optim_wrapper.paramwise_cfg.rules[{i}].{key}: nothing reads this key."
                        f"{did_you_mean(key, RULE_KEYS)} A rule has {', '.join(RULE_KEYS)}."
                    )
            if "pattern" not in rule:
                raise UserError(f"optim_wrapper.paramwise_cfg.rules[{i}] has no 'pattern': {rule}")

    def groups(self, model: nn.Module) -> list[dict]:
        """Parameter groups ``dict(params, lr, weight_decay, names)`` in the order in which their first parameter appears."""
        if "lr" not in self.optimizer_cfg:
            raise UserError("optim_wrapper.optimizer has no 'lr'. Give the learning rate.")
        base_lr, base_decay = self.optimizer_cfg["lr"], self.optimizer_cfg.get("weight_decay", 0.0)
        matched = [False] * len(self.rules)
        groups: dict[tuple[float, float], dict] = {}
        undecayed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
        self._check_names(undecayed, model)
        if not self.decay_norms:
            undecayed |= _norm_parameters(model)
        for name, parameter in model.named_parameters():
            rule: dict = {}
            for i, candidate in enumerate(self.rules):
                if re.search(candidate["pattern"], _name_for_rules(name)):
                    rule, matched[i] = candidate, True
                    break
            if not parameter.requires_grad:
                continue
            lr = rule.get("lr", base_lr * rule.get("lr_mult", 1.0)) * self._layer_factor(model, name)
            decay = rule.get("weight_decay", base_decay * rule.get("decay_mult", 1.0))
            if name in undecayed or (parameter.ndim <= 1 and not self.decay_vectors):
                decay = 0.0
            group = groups.setdefault((lr, decay), dict(params=[], lr=lr, weight_decay=decay, names=[]))
            group["params"].append(parameter)
            group["names"].append(name)
        for rule, hit in zip(self.rules, matched, strict=True):
            if not hit and not rule.get("optional", False):
                names = sorted({name.rsplit(".", 1)[0] for name, _ in model.named_parameters()})
                raise UserError(
                    f"Optimizer rule {rule['pattern']!r} fits no parameter of {type(model).__name__} that an "
                    f"earlier rule leaves to it. Correct the pattern (modules are named like {names[0]!r}, "
                    f"{names[-1]!r}) or mark the rule optional=True."
                )
        return list(groups.values())

    def _check_names(self, names: Iterable[str], model: nn.Module) -> None:
        unknown = sorted(set(names) - {name for name, _ in model.named_parameters()})
        if unknown:
            raise ValueError(f"{type(model).__name__}.no_weight_decay() names {unknown[0]!r}, which is no parameter of it")

    def _layer_factor(self, model: nn.Module, name: str) -> float:
        """What layer-wise decay makes of the learning rate of parameter `name`."""
        if self.layer_decay == 1:
            return 1.0
        if not hasattr(model, "layer_depth"):
            raise UserError(f"optim_wrapper.paramwise_cfg.layer_decay: {type(model).__name__} knows no layer depths.")
        depth = model.layer_depth(name)
        return 1.0 if depth is None else self.layer_decay ** (model.num_layers + 1 - depth)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, "module", model)
        groups = self.groups(model)
        if not groups:
            raise UserError(f"{type(model).__name__} has no trainable parameter: nothing to optimize.")
        lines = [
            f"{g['lr']:>10.3g} {g['weight_decay']:>12.3g} {len(g['params']):>8d} "
            f"{sum(p.numel() for p in g['params']):>12,d}  {g['names'][0]} ..."
            for g in groups
        ]
        MMLogger.get_current_instance().info(
            "Parameter groups:\n        lr weight decay  tensors      weights  first\n" + "\n".join(lines)
        )
        params = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]
        optimizer = OPTIMIZERS.build(dict(self.optimizer_cfg, params=params))
        wrapper = OPTIM_WRAPPERS.build(dict(dict(type="AmpWrapper"), **self.optim_wrapper_cfg, optimizer=optimizer))
        wrapper.parameter_names = {
            id(p): name for group in groups for p, name in zip(group["params"], group["names"], strict=True)
        }
        return wrapper


def _name_for_rules(name: str) -> str:
    """A parameter's name without the pyramid around a backbone: what that adds is new and counts as a part of its own."""
    return re.sub(r"^backbone\.(pyramid|fold)\.", r"\1.", name).replace("backbone.inner.", "backbone.", 1)


def _norm_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers."""
    norms = ((name, module) for name, module in model.named_modules() if isinstance(module, _NORMS))
    return {f"{prefix}.{name}" for prefix, module in norms for name, _ in module.named_parameters(recurse=False)}


@dataclass
class Failure:
    """Why a step was skipped: the tensor that is not finite and the images of the batch, where known."""

    tensor_name: str
    image_ids: tuple = ()
    overflow: bool = False  # the loss scale of fp16 was too large; the scaler lowers it, nothing is wrong with the batch
    remote: bool = False  # another process found the value


@OPTIM_WRAPPERS.register_module()
class AmpWrapper(OptimWrapper):
    """Optimizer wrapper with autocast, gradient clipping, and steps that are taken only when everything is finite.

    dtype: None (float32), ``"bf16"`` (CUDA and CPU) or ``"fp16"`` (CUDA; scales the loss dynamically).

    After `update_params`, or `reject` for a batch whose forward pass failed, `stepped` tells whether the optimizer moved
    and `failure` why not (None when gradients were only accumulated). One bad batch drops the whole accumulation window.
    In distributed training all processes skip together: one all-reduce before each backward pass.
    """

    def __init__(
        self, optimizer: Optimizer, dtype: str | None = None, accumulative_counts: int = 1, clip_grad: dict | None = None
    ) -> None:
        super().__init__(optimizer, accumulative_counts=accumulative_counts, clip_grad=clip_grad)
        if dtype is not None and dtype not in AMP_TYPES:
            raise UserError(
                f"optim_wrapper.dtype={dtype!r} is not a precision.{did_you_mean(dtype, AMP_TYPES)} "
                f"Use one of {', '.join(AMP_TYPES)}, or None for float32."
            )
        self.device = optimizer.param_groups[0]["params"][0].device
        if dtype == "fp16" and self.device.type != "cuda":
            raise UserError(
                f"fp16 training needs a CUDA GPU, the model is on {self.device}. Use --amp bf16, or train without --amp."
            )
        self.dtype = AMP_TYPES.get(dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == "fp16")
        self.stepped = False
        self.failure: Failure | None = None
        self.grad_norm = float("nan")
        self.parameter_names: dict[int, str] = {}  # id(parameter) -> name, for messages
        self._window_failed = False

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            yield

    def update_params(self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None) -> None:
        """Backward and, at the end of an accumulation window, clip and step; skip when `loss` or a gradient is not finite."""
        failure = None if bool(torch.isfinite(loss)) else Failure("loss")
        if not self._agree(failure):
            return
        self.scaler.scale(self.scale_loss(loss)).backward()
        self._inner_count += 1
        if self.should_update():
            if not self._window_failed:
                self.step(**(step_kwargs or {}))
            self._close_window(**(zero_kwargs or {}))

    def reject(self, failure: Failure) -> None:
        """Skip the batch whose forward pass raised; the other processes skip theirs in `update_params`."""
        self._agree(failure)

    def _agree(self, failure: Failure | None) -> bool:
        """True when no process has a failure; otherwise record it and drop the gradients of the window."""
        self.stepped, self.failure = False, None
        bad = failure is not None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor(float(bad), device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            if flag.item() and not bad:
                failure = Failure("a value on another process", remote=True)
        if failure is None:
            return True
        self.failure = failure
        self._window_failed = True
        self._inner_count += 1
        if self.should_update():
            self._close_window()
        return False

    def _close_window(self, **zero_kwargs: Any) -> None:
        self._window_failed = False
        self.zero_grad(**zero_kwargs)

    def _clip_and_check(self) -> bool:
        """Clip the gradients; False, with `failure` set, when one of them is not finite."""
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        by_norm = bool(self.clip_grad_kwargs) and self.clip_func is clip_grad_norm_
        norm = clip_grad_norm_(params, **self.clip_grad_kwargs) if by_norm else clip_grad_norm_(params, math.inf)
        self.grad_norm = norm.item()
        if not math.isfinite(self.grad_norm):
            bad = next((p for p in params if not torch.isfinite(p.grad).all()), None)
            name = self.parameter_names.get(id(bad), "some parameters")
            self.failure = Failure(f"the gradient of {name}", overflow=self.scaler.is_enabled())
            return False
        if self.clip_grad_kwargs and not by_norm:
            self.clip_func(params, **self.clip_grad_kwargs)
        return True

    def step(self, **kwargs: Any) -> None:
        """Clip the gradients and take a step, unless one of them is not finite."""
        self.scaler.unscale_(self.optimizer)
        if self._clip_and_check():
            self.scaler.step(self.optimizer, **kwargs)
            self.stepped = True
        self.scaler.update()

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Start at iteration `init_counts` of `max_counts`; gradients of an unfinished window are part of a checkpoint."""
        self._inner_count, self._max_counts = init_counts, max_counts
        self._remainder_counts = max_counts % self._accumulative_counts

    def state_dict(self) -> dict:
        state = dict(super().state_dict(), window_failed=self._window_failed)
        if self.scaler.is_enabled():
            state["loss_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        state_dict = dict(state_dict)
        self._window_failed = state_dict.pop("window_failed", False)
        scaler = state_dict.pop("loss_scaler", None)
        if scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)
