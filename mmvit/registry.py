"""Child registries of MMEngine's with scope ``mmvit``.

The modules that fill a registry (`locations`) are imported on its first look-up, so that ``import mmvit`` stays fast.
"""
from mmengine.registry import (DATA_SAMPLERS as _DATA_SAMPLERS, DATASETS as _DATASETS, HOOKS as _HOOKS, LOOPS as _LOOPS,
                               LOG_PROCESSORS as _LOG_PROCESSORS, METRICS as _METRICS, MODELS as _MODELS,
                               OPTIM_WRAPPER_CONSTRUCTORS as _OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS as _OPTIM_WRAPPERS,
                               PARAM_SCHEDULERS as _PARAM_SCHEDULERS, RUNNERS as _RUNNERS, TRANSFORMS as _TRANSFORMS,
                               VISUALIZERS as _VISUALIZERS, Registry)


def _child(name: str, parent: Registry, *locations: str) -> Registry:
    return Registry(name, parent=parent, scope="mmvit", locations=[f"mmvit.{location}" for location in locations])


MODELS = _child("model", _MODELS, "backbones", "necks", "heads", "architectures", "engine.ema")
DATASETS = _child("dataset", _DATASETS, "data")
DATA_SAMPLERS = _child("data sampler", _DATA_SAMPLERS, "data")
TRANSFORMS = _child("transform", _TRANSFORMS, "data")
METRICS = _child("metric", _METRICS, "evaluation")
HOOKS = _child("hook", _HOOKS, "engine")
LOOPS = _child("loop", _LOOPS, "engine")
RUNNERS = _child("runner", _RUNNERS, "engine")
LOG_PROCESSORS = _child("log processor", _LOG_PROCESSORS, "engine")
OPTIM_WRAPPERS = _child("optimizer wrapper", _OPTIM_WRAPPERS, "engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child("optimizer wrapper constructor", _OPTIM_WRAPPER_CONSTRUCTORS, "engine")
PARAM_SCHEDULERS = _child("parameter scheduler", _PARAM_SCHEDULERS, "engine")
VISUALIZERS = _child("visualizer", _VISUALIZERS, "engine")
