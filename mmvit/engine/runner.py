"""MMEngine's runner with checkpoints that survive a crash, exact resume and a quiet console."""

from __future__ import annotations

import copy
import itertools
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine
import torch
import torch.distributed as dist
from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner as _Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

import mmvit
import mmvit.engine.ema
from mmvit.engine.arguments import accepted_arguments
from mmvit.engine.checkpoint import LAST, atomic_save, atomic_text, last_checkpoint, plain, read_checkpoint, remove_leftovers
from mmvit.engine.hooks import counts_epochs, outlive_signals
from mmvit.engine.log import quiet_console, say, shown
from mmvit.engine.schedule import fit_schedule
from mmvit.errors import UserError, did_you_mean
from mmvit.registry import MODELS, RUNNERS

_runs = itertools.count()

#: hooks of every run; ``default_hooks`` of a config changes, adds (a dict) or removes (None) by name
DEFAULT_HOOKS = dict(
    runtime=dict(type="RuntimeHook"),
    progress=dict(type="ProgressHook"),
    curves=dict(type="CurveHook"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook"),
    interrupt=dict(type="InterruptHook"),
)


def list_samples(samples: Sequence[Any]) -> Any:
    """A batch: for each key the list of the samples' values (an image, or the list of an image's views)."""
    if not isinstance(samples[0], dict):  # of a dataset that is not ours
        return pseudo_collate(samples)
    return {key: [sample[key] for sample in samples] for key in samples[0]}


@RUNNERS.register_module()
class Runner(_Runner):
    """MMEngine's `Runner`, with these differences.

    * Checkpoints are written atomically and hold tensors and plain values only; they are read with ``weights_only=True``.
    * `resume` restores model, average, optimizer, schedule and position in the data, in the middle of an epoch too.
    * ``resume=True`` without checkpoint in the work dir starts afresh and says so.
    * Weights named by ``load_from`` have to fit, class count included.
    * ``cfg.device`` chooses the device; DDP works on the CPU, too.
    * Logs go to the file, a summary to the console.
    """

    def __init__(self, *args: Any, experiment_name: str | None = None, cfg: Any = None, **kwargs: Any) -> None:
        # A name of its own for every run of a process: MMEngine keeps loggers and message hubs by name.
        name = f"{experiment_name or Path(getattr(cfg, 'filename', None) or 'run').stem}_{next(_runs)}"
        self._device = torch.device((cfg or {}).get("device") or mmengine.device.get_device())
        super().__init__(*args, experiment_name=name, cfg=cfg, **kwargs)

    # -- environment -------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def setup_env(self, env_cfg: dict) -> None:
        """MMEngine's, and ``num_threads``: PyTorch's threads (a network of tiny maps gains nothing from more than one)."""
        if env_cfg.get("num_threads"):
            torch.set_num_threads(env_cfg["num_threads"])
        if self.distributed:
            for library in ("OMP", "MKL"):
                os.environ.setdefault(f"{library}_NUM_THREADS", "1")
        if self.distributed and self._device.type == "cpu" and not dist.is_initialized() and self._launcher == "pytorch":
            dist.init_process_group("gloo")  # MMEngine's own start needs a GPU
        super().setup_env(env_cfg)
        if self.distributed and self._device.type == "cuda":
            self._device = torch.device("cuda", torch.cuda.current_device())

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader:
        if isinstance(dataloader, dict):
            defaults = dict(worker_init_fn=dict(type=outlive_signals), collate_fn=dict(type=list_samples))
            dataloader = {**defaults, **dataloader}
        return _Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        if visualizer is None:
            return Visualizer.get_instance(self._experiment_name)
        return super().build_visualizer(visualizer)

    def _log_env(self, env_cfg: dict) -> None:
        self.logger.info(
            f"mmvit {mmvit.__version__}, MMEngine {mmengine.__version__}, PyTorch {torch.__version__}, Python "
            f"{sys.version.split()[0]}, {platform.platform()}, CUDA {torch.version.cuda}, "
            f"{torch.cuda.get_device_name() if self._device.type == 'cuda' else 'CPU'}, {self._world_size} process(es), "
            f"seed {self._seed}"
        )
        self.logger.info(f"Config:\n{self.cfg.pretty_text}")

    def register_default_hooks(self, hooks: dict[str, Hook | dict | None] | None = None) -> None:
        for hook in (copy.deepcopy(DEFAULT_HOOKS) | dict(hooks or {})).values():
            if hook is not None:
                self.register_hook(hook)

    # -- model -------------------------------------------------------------------------------------

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        try:
            return super().build_model(model)
        except TypeError as error:  # settings of a part, which no signature of the config check covers
            found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
            if not found:
                raise
            cls, key = MODELS.get(found[1]), found[2]
            known = sorted(accepted_arguments(cls) or ()) if cls else ()
            raise UserError(
                f"Config key {key!r} of a part of the model: {found[1]} does not read it.{did_you_mean(key, known)}"
                + (f" It reads {', '.join(known)}." if known else "")
            ) from error

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if model_wrapper_cfg is not None or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        model = model.to(self._device)
        if not self.distributed:
            return revert_sync_batchnorm(model)
        on_gpu = self._device.type == "cuda"
        if self.cfg.get("sync_bn") and on_gpu:
            model = convert_sync_batchnorm(model, self.cfg.sync_bn)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            return MMDistributedDataParallel(
                module=model,
                device_ids=[self._device.index] if on_gpu else None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get("find_unused_parameters", False),
            )

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def _init_model_weights(self) -> None:
        if self._load_from is None:  # else every weight is replaced anyway
            super()._init_model_weights()

    def _maybe_compile(self, target: str) -> None:
        """Compile backbone, neck and head each; losses and matching stay eager."""
        options = self.cfg.get("compile", None)
        if not options:
            return
        options = {} if options is True else dict(options)
        for name, part in self.bare_model.named_children():
            if name != "data_preprocessor":
                part.compile(**options)
        say("torch.compile: the first steps of every input size are slow")

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rates linearly with the batch (images per optimizer step, all processes together), and say so."""
        if not auto_scale_lr or not auto_scale_lr.get("enable", False):
            return
        base = auto_scale_lr["base_batch_size"]
        batch = self.train_dataloader.batch_size * self.world_size * optim_wrapper._accumulative_counts
        before = max(group["lr"] for group in optim_wrapper.optimizer.param_groups)
        for group in optim_wrapper.param_groups:
            group["lr"] = group["lr"] * batch / base
        if batch != base:
            say(
                f"learning rate {before:.3g} × {batch}/{base} = {before * batch / base:.3g}: the batch is {batch}, "
                f"the recipe's {base} (--no-auto-scale-lr keeps {before:.3g})"
            )

    # -- training and testing ----------------------------------------------------------------------

    def train(self) -> nn.Module:
        """Train; see MMEngine. Raises `mmvit.engine.Interrupted` when a signal stopped it."""
        if self.rank == 0:
            remove_leftovers(self.work_dir)
        self._find_resume()
        try:
            with warnings.catch_warnings():  # steps that are skipped or accumulate make MMEngine's scheduler wonder
                warnings.filterwarnings("ignore", message="Detected call of `scheduler.step", category=UserWarning)
                return super().train()
        except Exception as error:
            if self.cfg.get("compile", None) and type(error).__module__.startswith("torch._"):
                raise UserError(
                    f"torch.compile failed ({type(error).__name__}: {str(error).strip().splitlines()[0]}). "
                    "Train without --compile; on the CPU it needs a C++ compiler."
                ) from error
            raise
        finally:
            self._end_loaders()

    def test(self) -> dict:
        """Evaluate on the test data; the scores."""
        try:
            return super().test()
        finally:
            self._end_loaders()

    def _end_loaders(self) -> None:
        """End persistent data loading processes now: left to the garbage collector, each may take seconds."""
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            loader = getattr(loop, "dataloader", None)
            if getattr(loader, "_iterator", None) is not None:
                loader._iterator = None

    def _find_resume(self) -> None:
        """Turn ``resume=True`` without file into the file to resume, or into a fresh start."""
        if not self._resume or self._load_from is not None:
            return
        found = last_checkpoint(self.work_dir)
        if found is None:
            say(f"no checkpoint in {shown(self.work_dir)}: training starts from the beginning")
            self._resume = False
        else:
            self._load_from = str(found)

    def load_or_resume(self) -> None:
        if self._has_loaded or self._load_from is None:
            self._summary()
            return
        if self._resume:
            self.resume(self._load_from)
        else:
            self.load_checkpoint(self._load_from)
        self._has_loaded = True
        self._summary()

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        """Load weights to start from. They have to fit the model in every key, shape and class.

        With ``cfg.new_classes`` tensors whose shape differs keep their fresh values: training goes on to other classes.
        """
        from mmvit.weights import load_checkpoint, load_into

        model = self.bare_model
        state, meta = load_checkpoint(filename)
        state = model.convert(state) if hasattr(model, "convert") else state
        theirs, ours = tuple(meta.get("classes") or ()), self._classes()
        own = model.state_dict()
        fresh = [key for key in state if key in own and own[key].shape != state[key].shape]
        if self.cfg.get("new_classes", False):
            state = {key: value for key, value in state.items() if key not in fresh}
            if fresh:
                say(f"{len(fresh)} tensors for other classes start afresh, first {fresh[0]}")
        else:
            same_classes(theirs, ours, filename, "add --new-classes to train the class layers anew")
        load_into(model, state, allow_missing=fresh, source=filename)
        say(f"weights loaded from {filename}")
        return dict(meta=meta)

    def _classes(self) -> tuple[str, ...]:
        loop = self._train_loop if self._train_loop is not None else self._val_loop
        dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
        return tuple(getattr(dataset, "metainfo", {}).get("classes", ()))

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continue exactly where the checkpoint `filename` was saved."""
        checkpoint = read_checkpoint(filename)
        missing = [key for key in ("meta", "state_dict", "optimizer", "message_hub") if key not in checkpoint]
        if missing:
            raise UserError(
                f"{filename} has no {', '.join(missing)}: training cannot be resumed from it. "
                "Start from its weights with --load-from instead."
            )
        meta = checkpoint["meta"]
        theirs = tuple((meta.get("dataset_meta") or {}).get("classes", ()))
        same_classes(
            theirs,
            self._classes(),
            filename,
            "resume with the data it was trained on",
        )
        try:
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            self.bare_model.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise UserError(
                f"{filename} does not fit the model of this config: {str(error).strip().splitlines()[1].strip()} "
                "Resume with the config (and --backbone) that the run was started with."
            ) from error
        self._resume_seed(meta, filename)
        self.train_loop.seek(self._resume_iteration(meta))
        self.train_loop.validation_pending = bool(meta.get("validation_pending", False))
        self._load_message_hub(checkpoint["message_hub"])
        self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        self._resume_schedule(checkpoint.get("param_schedulers", ()))
        for name, parameter in self.bare_model.named_parameters():
            if name in checkpoint.get("gradients", {}):
                parameter.grad = checkpoint["gradients"][name].to(parameter)
        say(f"resumed {filename}: epoch {self.epoch + 1}, iteration {self.iter} of {self.max_iters}")

    def _resume_seed(self, meta: dict, filename: str) -> None:
        seed = meta["seed"]
        if self._randomness_cfg.get("seed") not in (None, seed):
            raise UserError(
                f"{filename} was trained with seed {seed}, this run asks for {self._randomness_cfg['seed']}: "
                f"the data order would change. Resume with --seed {seed}."
            )
        if seed != self._seed:
            self._seed = seed
            self.train_dataloader.sampler.seed = seed

    def _resume_iteration(self, meta: dict) -> int:
        """The iteration to go on from. Where an epoch has another number of iterations (batch, processes, data), a run that
        counts epochs goes on from the same part of its epoch.
        """
        before, now = meta.get("epoch_length"), len(self.train_dataloader)
        if not before or before == now:
            return meta["iter"]
        iteration = meta["iter"] * now // before if counts_epochs(self) else meta["iter"]
        instead = "" if iteration == meta["iter"] else f" instead of {meta['iter']}"
        self.logger.warning(
            f"an epoch had {before} iterations and has {now} now (another batch size, number of processes or data "
            f"set): going on from iteration {iteration}{instead}, with other "
            " batches than the run would have had"
        )
        return iteration

    def _resume_schedule(self, states: Sequence[dict]) -> None:
        schedulers = self.param_schedulers or []
        common = min(len(schedulers), len(states))  # of runs of other lengths, one may have no warm-up, which comes first
        if len(schedulers) != len(states):
            self.logger.warning(
                "this command asks for another length than the run was started with, and only one of the two has a warm-up: "
                "the learning rate goes on without it"
            )
        self.param_schedulers = schedulers[len(schedulers) - common :]
        for scheduler, state in zip(self.param_schedulers, states[len(states) - common :]):
            end = scheduler.end
            scheduler.load_state_dict(state)
            if scheduler.end != end:
                unit = "epoch" if scheduler.by_epoch else "iteration"
                self.logger.warning(
                    f"the run was started with a {type(scheduler).__name__} up to {unit} {scheduler.end}, this command asks "
                    f"for one up to {end}: the learning rate follows the old schedule"
                )
            while scheduler.by_epoch and scheduler._global_step < self.epoch:  # cut between an epoch's last step and its end
                scheduler.step()

    def build_param_scheduler(self, scheduler: Any) -> Any:
        if isinstance(scheduler, (dict, list, tuple)):
            scheduler = fit_schedule([scheduler] if isinstance(scheduler, dict) else list(scheduler), self.max_iters)
        return super().build_param_scheduler(scheduler)

    def _load_message_hub(self, state: dict) -> None:
        scalars = {
            key: HistoryBuffer(item["log"].numpy(), item["count"].numpy(), item["max_length"])
            for key, item in state["log_scalars"].items()
        }
        self.message_hub.load_state_dict(dict(state, log_scalars=scalars))

    # -- saving ------------------------------------------------------------------------------------

    @master_only
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write a checkpoint atomically; ``meta["iter"]`` is the number of iterations done."""
        loop, loader = self.train_loop, self.train_dataloader
        iteration = (meta or {}).get("iter", self.iter)
        facts = dict(
            iter=iteration,
            epoch=iteration // len(loader),
            epoch_length=len(loader),
            batch_size=loader.batch_size,
            world_size=self.world_size,
            validation_pending=getattr(loop, "validation_pending", False),
            seed=self.seed,
            cfg=self._cfg_text(),
            experiment_name=self.experiment_name,
            time=time.strftime("%Y%m%d_%H%M%S"),
            mmvit_version=mmvit.__version__,
            mmengine_version=mmengine.__version__,
            dataset_meta=getattr(loader.dataset, "metainfo", None),
        )
        hub = self.message_hub.state_dict()
        hub["log_scalars"] = {
            key: dict(log=buffer.data[0], count=buffer.data[1], max_length=buffer.max_length)
            for key, buffer in hub["log_scalars"].items()
        }
        checkpoint = dict(
            meta=plain(facts | (meta or {})), state_dict=dict(plain(dict(self.bare_model.state_dict()))), message_hub=plain(hub)
        )
        if save_optimizer:
            checkpoint["optimizer"] = plain(self.optim_wrapper.state_dict())
            wrapper = self.optim_wrapper
            if wrapper.inner_count % wrapper._accumulative_counts:  # in the middle of an accumulation window
                named = self.bare_model.named_parameters()
                checkpoint["gradients"] = {name: plain(p.grad) for name, p in named if p.grad is not None}
        if save_param_scheduler:
            checkpoint["param_schedulers"] = [plain(scheduler.state_dict()) for scheduler in self.param_schedulers or ()]
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        checkpoint = {key: plain(value) for key, value in checkpoint.items()}
        atomic_save(checkpoint, Path(out_dir) / filename)
        self.logger.info(f"saved {filename}")

    @master_only
    def mark_last(self, name: str) -> None:
        """Make checkpoint `name` of the work dir the one that ``resume=True`` takes."""
        atomic_text(str(Path(self.work_dir) / name), Path(self.work_dir) / LAST)

    def _cfg_text(self) -> str:
        if not hasattr(self, "_cfg_dump"):
            self._cfg_dump = self.cfg.pretty_text
        return self._cfg_dump

    def _length(self) -> str:
        """How long training is, in words."""
        length = len(self.train_dataloader)
        if counts_epochs(self):
            return f"{self.max_epochs} epochs of {length} iterations"
        return f"{self.max_iters} iterations ({self.max_iters / length:.3g} passes over the data)"

    def _summary(self) -> None:
        """A few lines about the run on the console."""
        model = self.bare_model
        total = sum(p.numel() for p in model.parameters())
        where = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else str(self._device)
        name = getattr(model, "arch", "")
        lines = [f"model     {type(model).__name__}{f' {name}' if name else ''}, {total / 1e6:.2f} M parameters"]
        if self._train_loop is not None and not isinstance(self._train_loop, dict):
            data, wrapper = self.train_dataloader, self.optim_wrapper
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            if trained != total:
                lines[0] += f", {trained / 1e6:.2f} M of them trained"
            val = f", {len(self.val_dataloader.dataset)} validation images" if self.val_loop is not None else ""
            lr = max(group.get("initial_lr", group["lr"]) for group in wrapper.optimizer.param_groups)
            amp = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(getattr(wrapper, "dtype", None), "float32")
            lines += [
                f"data      {len(data.dataset)} training images{val}, {len(self._classes())} classes",
                f"schedule  {self._length()}, batch {data.batch_size}"
                + (f" × {self.world_size} processes" if self.world_size > 1 else "")
                + f", lr {lr:.3g}, {amp}, seed {self.seed}",
            ]
        lines += [f"device    {where}", f"work dir  {shown(self.work_dir)}"]
        say("\n".join(lines))


def same_classes(theirs: tuple[str, ...], ours: tuple[str, ...], filename: str, remedy: str) -> None:
    """Raise `UserError` when a checkpoint and the data set disagree on the classes (where both are known)."""
    if not theirs or not ours or theirs == ours:
        return
    differ = next((i for i, (a, b) in enumerate(itertools.zip_longest(theirs, ours)) if a != b), 0)
    names = [repr(classes[differ]) if differ < len(classes) else "nothing" for classes in (theirs, ours)]
    raise UserError(
        f"{filename} has {len(theirs)} classes, the data set has {len(ours)}; "
        f"class {differ} is {names[0]} in the checkpoint and {names[1]} in the data: {remedy}."
    )
