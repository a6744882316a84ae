# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion-K as a ``torch.optim`` optimizer."""

from . import kappa as kappas
from ._sharding import Gathered, holds_whole_slices
from .kappa import Entropy, GroupLasso, SignedEntropy
from .kappa._base import dimension
from .kappa.registry import is_builtin
from .lion import Lion


class LionK(Lion):
    r"""Lion with the subgradient of a convex function K in the place of its sign.

    .. math::
        c = \beta_1 m + (1-\beta_1)\, g, \qquad p = p\,(1 - \eta\lambda) - \eta\,\nabla K(c),
        \qquad m = \beta_2 m + (1-\beta_2)\, g

    Chen, Liu, Liang, Liu 2024, "Lion Secretly Solves Constrained Optimization: As Lyapunov
    Predicts" (ICLR), arXiv 2310.05898. What is minimised is :math:`f(x) + K^*(\lambda x)/\lambda`;
    for a norm K: f under the constraint that the dual norm of x is at most :math:`1/\lambda`. For a
    K that is not even the step is :math:`u = -\nabla K(-c)`.

    Parameters
    ----------
    params, lr, betas, weight_decay
        As in :class:`Lion`.
    kappa : str, dict or object
        K, as ``largebatch.optim.kappa.get`` takes it: a name, a dict of name and parameters, an
        object of ``largebatch.optim.kappa``, or one of your own with ``subgradient(v)``. In a group
        the built-in ones are plain data, so that a checkpoint loads with ``weights_only=True``.
    cautious : bool
        As in :class:`Lion`; needs an elementwise K.
    state_dtype, stochastic_rounding, seed, master_weights, maximize, capturable, fused
        As in :class:`Lion`.

    Raises
    ------
    ValueError
        For an unknown kappa, its parameters or a hyper-parameter out of range, tensors listed twice
        or overlapping.
    TypeError
        For parameters that a kappa does not have, or dtypes that do not go together.
    RuntimeError
        For sparse gradients.

    Notes
    -----
    Kernels do the step but for top_k, sorted_l1, nuclear and spectral, which step through torch
    operations, one tensor after the other, with temporary memory of some times the
    largest; as do groups with an int8 momentum whose neighbours in memory are not whole blocks of
    128. 20 B per fp32 parameter where K is a sum over elements or over groups that fit a tile of
    16384 elements, else 28. Of a sharded parameter each rank steps its own part if K is a sum over
    elements, or over groups of which every rank holds whole ones; else the whole c is gathered on
    every rank. ("Lowest index", by which equals are told apart, is that in memory where a kernel
    steps, else row-major; one and the same for contiguous parameters.)

    Examples
    --------
    >>> optimizer = LionK(model.parameters(), lr=1e-3, weight_decay=1.0, kappa="group_lasso")
    >>> loss.backward(); optimizer.step(); optimizer.zero_grad()
    """

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        *,
        kappa="l1",
        cautious=False,
        state_dtype=None,
        stochastic_rounding=True,
        seed=0,
        master_weights=True,
        maximize=False,
        capturable=False,
        fused=None,
    ):
        kappa = _plain(kappa)
        self._construct(params, locals())

    def _check(self, group):
        group["kappa"] = _plain(group["kappa"])
        super()._check(group)

    def add_param_group(self, param_group):
        """Add a group, with its hyper-parameters checked before anything changes."""
        super().add_param_group(param_group)
        self._check(self.param_groups[-1])

    def _kappa(self, group):
        return _built(group["kappa"])

    def _part_kappa(self, kappa, param):
        if getattr(kappa, "elementwise", False):
            return kappa
        if isinstance(kappa, Entropy | SignedEntropy | GroupLasso):  # sums over groups
            axis = dimension(kappa.axis, param.dim())
            if holds_whole_slices(param, axis, getattr(kappa, "size", 1)):
                return kappa
        return Gathered(kappa, param)


_BUILT = {}  # repr of a name or dict -> object


def _built(spec):
    """Return the object that an entry of a group means; those of names and dicts are kept."""
    if not isinstance(spec, str | dict):
        return kappas.get(spec)
    key = repr(spec)
    kappa = _BUILT.get(key)
    if kappa is None:
        kappa = kappas.get(spec)
        if len(_BUILT) >= 256:  # somebody changes a parameter from step to step
            _BUILT.clear()
        _BUILT[key] = kappa
    return kappa


def _plain(spec):
    """Return a built-in as plain data; what is that already, and objects of users, as they are."""
    return spec.as_dict() if is_builtin(spec) else spec
