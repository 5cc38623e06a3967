"""Child registries of MMEngine's with scope ``mmvit``.

The modules that fill a registry (`locations`) are imported on its first look-up, so that ``import mmvit`` stays fast. Where
mmcv has no compiled operators, those of `mmvit.ops` stand in from here on: mmdet's and mmseg's parts can be built by name.
"""

from mmengine.registry import DATA_SAMPLERS as _DATA_SAMPLERS
from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import LOG_PROCESSORS as _LOG_PROCESSORS
from mmengine.registry import LOOPS as _LOOPS
from mmengine.registry import METRICS as _METRICS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as _OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as _OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS as _OPTIMIZERS
from mmengine.registry import PARAM_SCHEDULERS as _PARAM_SCHEDULERS
from mmengine.registry import RUNNERS as _RUNNERS
from mmengine.registry import TRANSFORMS as _TRANSFORMS
from mmengine.registry import VISUALIZERS as _VISUALIZERS
from mmengine.registry import Registry

from mmvit.ops import prepare_openmmlab

prepare_openmmlab()  # before anything that a registry imports can import mmcv.ops, mmdet or mmseg


def _child(name: str, parent: Registry, *locations: str) -> Registry:
    return Registry(name, parent=parent, scope="mmvit", locations=[f"mmvit.{location}" for location in locations])


MODELS = _child("model", _MODELS, "backbones", "necks", "heads", "architectures", "engine.ema")
DATASETS = _child("dataset", _DATASETS, "data")
DATA_SAMPLERS = _child("data sampler", _DATA_SAMPLERS, "data")
TRANSFORMS = _child("transform", _TRANSFORMS, "data")
METRICS = _child("metric", _METRICS, "evaluation")
HOOKS = _child("hook", _HOOKS, "engine.hooks", "engine.ema")
LOOPS = _child("loop", _LOOPS, "engine.loops")
RUNNERS = _child("runner", _RUNNERS, "engine.runner")
LOG_PROCESSORS = _child("log processor", _LOG_PROCESSORS, "engine")
OPTIMIZERS = _child("optimizer", _OPTIMIZERS, "engine.optim")
OPTIM_WRAPPERS = _child("optimizer wrapper", _OPTIM_WRAPPERS, "engine.optim")
OPTIM_WRAPPER_CONSTRUCTORS = _child("optimizer wrapper constructor", _OPTIM_WRAPPER_CONSTRUCTORS, "engine.optim")
PARAM_SCHEDULERS = _child("parameter scheduler", _PARAM_SCHEDULERS, "engine")
VISUALIZERS = _child("visualizer", _VISUALIZERS, "engine")
