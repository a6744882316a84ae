# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizers of others that ours are measured against, where they are installed."""

import importlib
import importlib.util
import sys
import types

import torch


def timm_optimizer(module, name):
    """Return an optimizer of timm without the rest of timm, which needs a working torchvision."""
    package = "_timm_optim"
    if package not in sys.modules:
        timm = importlib.util.find_spec("timm")
        if timm is None:
            raise ImportError("timm is not installed")
        optim = types.ModuleType(package)
        optim.__path__ = [f"{path}/optim" for path in timm.submodule_search_locations]
        sys.modules[package] = optim
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def _timm_lamb(params):
    return timm_optimizer("lamb", "Lamb")(params, lr=1e-3, weight_decay=0.01, max_grad_norm=1.0)


def _timm_lars(params):
    return timm_optimizer("lars", "Lars")(params, lr=1e-3, momentum=0.9, weight_decay=1e-4)


def _pytorch_optimizer_lamb(params):
    module = importlib.import_module("pytorch_optimizer")
    return module.Lamb(params, lr=1e-3, weight_decay=0.01, pre_norm=True, max_grad_norm=1.0)


def _pytorch_optimizer_lars(params):
    module = importlib.import_module("pytorch_optimizer")
    return module.LARS(params, lr=1e-3, momentum=0.9, weight_decay=1e-4)


def _timm_lion(params):
    return timm_optimizer("lion", "Lion")(params, lr=1e-4, weight_decay=0.1)


def _lion_pytorch(params):
    module = importlib.import_module("lion_pytorch")
    return module.Lion(params, lr=1e-4, weight_decay=0.1)


def _lion_pytorch_foreach(params):
    module = importlib.import_module("lion_pytorch.foreach")
    return module.Lion(params, lr=1e-4, weight_decay=0.1)


def _pytorch_optimizer_lion(params):
    module = importlib.import_module("pytorch_optimizer")
    return module.Lion(params, lr=1e-4, weight_decay=0.1)


def _timm_adan(params):
    return timm_optimizer("adan", "Adan")(params, lr=1e-3, weight_decay=0.02)


def _pytorch_optimizer_adan(params):
    module = importlib.import_module("pytorch_optimizer")
    return module.Adan(params, lr=1e-3, weight_decay=0.02)


def _torch_adamw(params):
    return torch.optim.AdamW(params, lr=1e-3, fused=True)


def _torch_sgd(params):
    return torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)


# family -> name -> constructor. torch's own are no peers but the floor: they take no norms, and
# keep less state.
BASELINES = {
    "lamb": {
        "timm": _timm_lamb,
        "pytorch_optimizer": _pytorch_optimizer_lamb,
        "torch AdamW fused": _torch_adamw,
    },
    "lars": {
        "timm": _timm_lars,
        "pytorch_optimizer": _pytorch_optimizer_lars,
        "torch SGD fused": _torch_sgd,
    },
    "lion": {
        "timm": _timm_lion,
        "lion-pytorch": _lion_pytorch,
        "lion-pytorch foreach": _lion_pytorch_foreach,
        "pytorch_optimizer": _pytorch_optimizer_lion,
        "torch SGD fused": _torch_sgd,
    },
    "adan": {
        "timm": _timm_adan,
        "pytorch_optimizer": _pytorch_optimizer_adan,
        "torch AdamW fused": _torch_adamw,
    },
}
