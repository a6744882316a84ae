# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizers of others that ours are measured against, where they are installed."""

import importlib
import importlib.util
import sys
import types

import torch
from entries import floor, in_its_dtype, peer


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


# ---- Kernels of others: on a GPU only ------------------------------------------------------------


def _on_gpu(params):
    if params[0].device.type != "cuda":
        raise ImportError("its kernels are for GPUs")


def _lion_pytorch_triton(params):
    _on_gpu(params)
    module = importlib.import_module("lion_pytorch")
    return module.Lion(params, lr=1e-4, weight_decay=0.1, use_triton=True)


def _bitsandbytes(name, **settings):
    def make(params):
        _on_gpu(params)
        return getattr(importlib.import_module("bitsandbytes.optim"), name)(params, **settings)

    return make


def _deepspeed(module, name, **settings):
    def make(params):
        _on_gpu(params)
        return getattr(importlib.import_module(f"deepspeed.ops.{module}"), name)(params, **settings)

    return make


def _apex_lamb(params):
    _on_gpu(params)
    module = importlib.import_module("apex.optimizers")
    return module.FusedLAMB(params, lr=1e-3, weight_decay=0.01, max_grad_norm=1.0)


# ---- Floors: torch's own optimizers take no norms, and keep less state ---------------------------


def _torch_adamw(**settings):
    return lambda params: torch.optim.AdamW(params, lr=1e-3, **settings)


def _torch_sgd(params):
    return torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)


_ADAMW = {
    "torch AdamW fused": floor(_torch_adamw(fused=True), in_its_dtype(7)),
    "torch AdamW foreach": floor(_torch_adamw(foreach=True)),
}
_SGD = {"torch SGD fused": floor(_torch_sgd, in_its_dtype(5))}

# family -> name -> entry
BASELINES = {
    "lamb": {
        "timm": peer(_timm_lamb),
        "pytorch_optimizer": peer(_pytorch_optimizer_lamb),
        "apex": peer(_apex_lamb),
        "DeepSpeed": peer(_deepspeed("lamb", "FusedLamb", lr=1e-3, weight_decay=0.01)),
        "bitsandbytes": peer(_bitsandbytes("LAMB", lr=1e-3, weight_decay=0.01)),
        **_ADAMW,
    },
    "lars": {
        "timm": peer(_timm_lars),
        "pytorch_optimizer": peer(_pytorch_optimizer_lars),
        "bitsandbytes": peer(_bitsandbytes("LARS", lr=1e-3, momentum=0.9, weight_decay=1e-4)),
        **_SGD,
    },
    "lion": {
        "timm": peer(_timm_lion),
        "lion-pytorch": peer(_lion_pytorch),
        "lion-pytorch foreach": peer(_lion_pytorch_foreach),
        "lion-pytorch Triton": peer(_lion_pytorch_triton),
        "pytorch_optimizer": peer(_pytorch_optimizer_lion),
        "DeepSpeed": peer(_deepspeed("lion", "FusedLion", lr=1e-4, weight_decay=0.1)),
        "bitsandbytes": peer(_bitsandbytes("Lion", lr=1e-4, weight_decay=0.1)),
        "bitsandbytes, int8 momentum": peer(_bitsandbytes("Lion8bit", lr=1e-4, weight_decay=0.1)),
        **_SGD,
    },
    "adan": {
        "timm": peer(_timm_adan),
        "pytorch_optimizer": peer(_pytorch_optimizer_adan),
        **_ADAMW,
    },
}
