# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the convex functions share: checks, scale, groups of elements, the Euclidean distance."""

import math
from dataclasses import asdict

import torch

AXES = {"row": 0, "column": 1}


class Kappa:
    r"""A convex function K of a weight tensor, as Lion-K needs it.

    Subclasses are frozen dataclasses and give their K without scale; all that is public here
    speaks of :math:`s K` with :math:`s` = :meth:`scale_factor`. Arguments are real floating tensors
    (complex weights: ``torch.view_as_real``, so that elementwise kinds act on real and imaginary
    parts, norms on 2n reals). ``value``, ``conjugate``, ``project`` and ``distance`` compute in
    float64, some of them in Python loops: they are for looking at a training, not for its steps.
    """

    name = ""  # in `get` and `as_dict`
    kernel = None  # what a kernel of it is to be called; None where torch ops are to do the step
    even = True  # K(-v) = K(v)
    elementwise = False  # an element of the subgradient depends on that of v alone

    # ------------------------------------------------------------------------------ public

    def subgradient(self, v):
        """Return u, a subgradient of K at v, shaped as v.

        Parameters
        ----------
        v : Tensor
            Real floating, any shape.

        Returns
        -------
        Tensor
            float32, or float64 for float64. Non-finite elements go where the formula takes them;
            the sign of NaN is 0.
        """
        v = self._real(v)
        if v.numel() == 0:
            return v.clone()
        u = self._subgradient(v)
        s = self.scale_factor(v.shape)
        return u if s == 1 else s * u

    def value(self, v):
        """Return K(v), a 0-dim float64 tensor."""
        v = self._real(v).double()
        if v.numel() == 0:
            return v.new_zeros(())
        return self.scale_factor(v.shape) * self._value(v)

    def conjugate(self, z, *, tolerance=1e-6):
        r"""Return :math:`K^*(z) = \sup_v \langle z, v \rangle - K(v)`, a 0-dim float64 tensor.

        Infinity outside the domain, and for a z that is not finite. A z that reaches out of it by
        no more than the share `tolerance` (in the norm or sum that bounds it) counts as on its
        edge, so that float32 weights at their bound have a value.
        """
        z = self._real(z).double()
        if z.numel() == 0:
            return z.new_zeros(())
        if not torch.isfinite(z).all():
            return z.new_tensor(torch.inf)
        s = self.scale_factor(z.shape)
        return s * self._conjugate(z / s, tolerance)

    def project(self, x, weight_decay):
        """Return the feasible point nearest to x, float64; x itself where nothing is bounded.

        Feasible: the conjugate of weight_decay * x is finite.
        """
        x = self._real(x).double()
        weight_decay = number(self, "weight_decay", weight_decay, least=0)
        if weight_decay == 0 or x.numel() == 0:
            return x.clone()
        t = self.scale_factor(x.shape) / weight_decay
        z = x / t
        near = self._project(z)
        return torch.where(near == z, x, t * near)

    def distance(self, x, weight_decay):
        """Return the Euclidean distance from x to the feasible set, a 0-dim float64 tensor.

        0 inside, and everywhere if K bounds nothing or `weight_decay` is 0.
        """
        x = self._real(x).double()
        away = x - self.project(x, weight_decay)
        return rms(away) * x.numel() ** 0.5

    def scale_factor(self, shape):
        """Return s as a float, for a tensor of this shape: what ``scale="rms"`` multiplies u by."""
        return 1.0

    def as_dict(self):
        """Return the name and the parameters as plain data, which ``kappa.get`` takes back."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"name": self.name, **data}

    def __post_init__(self):
        """Refuse parameters out of range, with a ValueError that names them."""
        self._check()

    # ------------------------------------------------- what a subclass says, of K without scale

    def _check(self):
        """Check the parameters."""

    def _subgradient(self, v):
        raise NotImplementedError

    def _value(self, v):
        raise NotImplementedError

    def _conjugate(self, z, tolerance):
        raise NotImplementedError

    def _project(self, z):
        """Return the nearest point with a finite conjugate."""
        return z

    # ----------------------------------------------------------------------------- helpers

    def _set(self, name, value):
        object.__setattr__(self, name, value)  # frozen for users only

    def _real(self, v):
        if not (torch.is_tensor(v) and v.is_floating_point()):
            got = v.dtype if torch.is_tensor(v) else type(v).__name__
            raise TypeError(
                f"{type(self).__name__}: v got {got}, expected a real floating tensor. "
                "Pass torch.view_as_real(v) for a complex one."
            )
        return v.detach().to(torch.promote_types(v.dtype, torch.float32))


class Relative:
    """Mixin of the kinds with a threshold, which may be relative to the root mean square of v."""

    _threshold = "e"

    @property
    def elementwise(self):
        """Whether an element of u depends on that of v alone: not with a relative threshold."""
        return not self.relative

    def at(self, v):
        """Return the K that acts at v: with `relative`, the one with the threshold it has there."""
        if not self.relative:
            return self
        value = getattr(self, self._threshold) * rms(v.double()).item()
        # At v = 0 every threshold gives the same u = 0.
        return type(self)(**{self._threshold: max(value, 5e-324)})

    def value(self, v):
        """Return K(v), of the K :meth:`at` v with `relative`."""
        return super(Relative, self.at(v)).value(v)

    def conjugate(self, z, *, tolerance=1e-6):
        """Return K*(z), see :class:`Kappa`; a ValueError with `relative`, where K depends on v."""
        if self.relative:
            raise ValueError(
                f"{type(self).__name__}: relative got True, expected False for the conjugate: "
                "take that of kappa.at(v)."
            )
        return super().conjugate(z, tolerance=tolerance)

    def _level(self, v):
        """Return the threshold at v, a float or a 0-dim tensor in the dtype of v."""
        level = getattr(self, self._threshold)
        return (level * rms(v.double())).to(v.dtype) if self.relative else level


# ---- Checks --------------------------------------------------------------------------------------


def refuse(kappa, name, value, expected):
    """Raise the ValueError for a parameter."""
    raise ValueError(f"{type(kappa).__name__}: {name} got {value!r}, expected {expected}.")


def number(kappa, name, value, above=None, least=None):
    """Check that a parameter is a finite number in its range; return it as a float."""
    expected = f"a finite number {f'> {above}' if above is not None else f'>= {least}'}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        refuse(kappa, name, value, expected)
    if value <= above if above is not None else value < least:
        refuse(kappa, name, value, expected)
    return float(value)


def one_of(kappa, name, value, choices):
    """Check that a parameter is one of some choices."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):  # 1 is True
        refuse(kappa, name, value, " or ".join(map(repr, choices)))


def integer(kappa, name, value):
    """Check that a parameter is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(kappa, name, value, "an integer >= 1")


def check_axis(kappa, whole=False):
    """Check the axis; None, the whole tensor, only if `whole`."""
    axis = kappa.axis
    dimension = isinstance(axis, int) and not isinstance(axis, bool) and axis >= 0
    if not (dimension or (isinstance(axis, str) and axis in AXES) or (whole and axis is None)):
        choices = "'row', 'column' or a dimension >= 0" + (", or None" if whole else "")
        refuse(kappa, "axis", axis, choices)


def check_scale(kappa):
    """Check the scale."""
    one_of(kappa, "scale", kappa.scale, ("rms", "none"))


# ---- Groups --------------------------------------------------------------------------------------


def dimension(axis, ndim):
    """Return the dimension an axis means in a tensor, None if the whole tensor is one group.

    Vectors are one group on every axis: each element by itself would make any K a sum of |v|.
    """
    if axis is None:
        return None
    axis = AXES.get(axis, axis)
    return axis if ndim >= max(2, axis + 1) else None


def group_shape(kappa, shape, size=1):
    """Return (number of groups, their length) of a tensor of this shape."""
    axis = dimension(kappa.axis, len(shape))
    numel = math.prod(shape)
    if axis is None:
        return 1, numel
    if shape[axis] % size:
        expected = f"a divisor of dimension {axis} of the parameter shape {tuple(shape)}"
        refuse(kappa, "size", size, expected)
    groups = shape[axis] // size
    return groups, numel // max(groups, 1)


def to_groups(kappa, v, size=1):
    """Return ``[groups, length]``, one group a row."""
    groups, length = group_shape(kappa, v.shape, size)
    axis = dimension(kappa.axis, v.dim())
    return (v if axis is None else v.movedim(axis, 0)).reshape(groups, length)


def from_groups(kappa, rows, shape):
    """Undo :func:`to_groups`."""
    axis = dimension(kappa.axis, len(shape))
    if axis is None:
        return rows.reshape(shape)
    moved = [shape[axis], *shape[:axis], *shape[axis + 1 :]]
    return rows.reshape(moved).movedim(0, axis)


# ---- Norms ---------------------------------------------------------------------------------------


def unit(rows):
    """Return rows / their largest magnitude, and that ``[groups, 1]``; float64; 0 for zero rows."""
    rows = rows.double()
    largest = rows.abs().amax(dim=1, keepdim=True)
    return rows / torch.where(largest == 0, 1.0, largest), largest


def norm2(rows):
    """Return the norm of each row, ``[groups, 1]`` float64, for numbers of any size."""
    rows, largest = unit(rows)
    return largest * rows.square().sum(dim=1, keepdim=True).sqrt()


def normalised(rows):
    """Return each row divided by its norm, zero rows as they are; float64."""
    rows, _ = unit(rows)
    norms = rows.square().sum(dim=1, keepdim=True).sqrt()
    return rows / torch.where(norms == 0, 1.0, norms)


def rms(v):
    """Return the root mean square of all elements, 0-dim float64; 0 for an empty tensor."""
    if v.numel() == 0:
        return v.new_zeros((), dtype=torch.float64)
    return norm2(v.reshape(1, -1)).reshape(()) / v.numel() ** 0.5
