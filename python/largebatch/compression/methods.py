# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Error feedback: what a rank does with what it could not send.

Of a gradient g, each rank sends Delta = C(key) and every rank gets the same update u:

===================  =============  =======================================  =============
method               key            after it is sent                         u
===================  =============  =======================================  =============
ErrorFeedback        e + g          e <- e + g - Delta                       mean Delta
EF21                 g - h          h <- h + Delta, H <- H + mean Delta      H
EControl             eta e + g - h  e <- e + g - h - Delta, h, H as EF21     H
DGC                  v + m          m <- mu m + g, v <- v + m - Delta        mean Delta
===================  =============  =======================================  =============

Delta is what receivers decode, roundings included.
"""

import math
import warnings

from .compressors import TopK, refuse
from .exchange import Exchange, State
from .hook import Hook


class Method:
    """What all methods share: see :class:`EControl`."""

    name = "none"
    shifted = False  # the update is H, the mean of the shifts, and not the mean of what is sent

    def __init__(self, compressor, *, momentum=None, min_numel=4096):
        if not hasattr(compressor, "record"):
            refuse(self, "compressor", compressor, "a compressor, as TopK(ratio=0.01)", TypeError)
        if momentum is not None and not 0 < momentum <= 1:
            refuse(self, "momentum", momentum, "a number in (0, 1], the weight of a new gradient")
        if not isinstance(min_numel, int) or min_numel < 0:
            refuse(self, "min_numel", min_numel, "an integer of at least 0")
        self.compressor, self.momentum, self.min_numel = compressor, momentum, min_numel

    def rule(self, numels):
        """Return the constants of the update, for the engine."""
        return {"method": self.name, "beta": self.momentum}

    def roles(self):
        """Return which tensors of state there are for each parameter."""
        own = {"error": self.name in ("feedback", "econtrol", "dgc"), "shift": self.shifted}
        own |= {"momentum": self.momentum is not None or self.name == "dgc", "mean": self.shifted}
        return [role for role, there in own.items() if there]

    def init(self, tensors, *, rank=0):
        """Return the state of a rank, zero, for tensors like its gradients.

        Examples
        --------
        >>> state = EF21(TopK(k=1), min_numel=0).init([torch.zeros(3)])
        >>> state.shifts
        [tensor([0., 0., 0.])]
        """
        return State(tensors, self.roles(), rank)

    def encode(self, state, grads, *, inv_scale=None):
        """Take gradients into the state of a rank; return its payload, ``[bytes]`` uint8.

        Parameters
        ----------
        state : State
        grads : list of Tensors
            fp32, fp16, bf16 or fp64, one dtype, the sizes of the state's. Not changed.
        inv_scale : Tensor, optional
            ``[1]`` fp32: 1 over the scale of a loss scaler.

        The same bits on every run and backend. A gradient that is not finite is left out, and
        counted in the payload: no state becomes infinite or NaN.
        """
        return self._exchange(state, grads).encode(grads, inv_scale)

    def decode(self, state, payloads, *, scale=None, skip=False):
        """Take what was sent out of the state; return the update, a list of tensors like the grads.

        Parameters
        ----------
        state : State
            Of the rank whose last payload is ``payloads[state.rank]``.
        payloads : Tensor ``[W, bytes]`` uint8, or a list of W payloads
            Of all ranks, in their order.
        scale : Tensor, optional
            ``[1]`` fp32 that the update is multiplied by.
        skip : bool
            If a rank has left out a gradient, nothing counts as sent, and the update begins with a
            NaN: a loss scaler then skips the step.

        The update is the same on every rank, bit for bit.
        """
        if state.exchange is None:
            raise ValueError(f"{type(self).__name__}.decode: state has no payload, encode first.")
        return state.exchange.decode(payloads, scale, skip)

    def hook(self, model, *, process_group=None, start_step=2, nonfinite="skip"):
        """Return a communication hook for ``ddp.register_comm_hook(None, hook)``.

        It takes the place of DDP's all-reduce: one all-gather of payloads for each bucket. State is
        kept by parameter, so that buckets may change; ``no_sync`` and gradients that are views of
        buckets work as they do without it.

        Parameters
        ----------
        model : Module
            The one inside DistributedDataParallel: it gives parameters their names.
        process_group : ProcessGroup, optional
        start_step : int
            Steps that are dense, at least 1: buckets change after the first one, and the last one
            gives h, H and the momentum without further communication.
        nonfinite : {"skip", "drop", "raise"}
            What a gradient does that is not finite, on any rank. skip: nothing of its bucket is
            sent, and the update has a NaN, by which a loss scaler skips the step everywhere; what
            other buckets have sent is lost with the step, where the update is not H. drop: the
            element is left out. raise: so, and FloatingPointError on every rank; waits for the
            device.

        Returns
        -------
        Hook
            With ``state_dict()``, ``load_state_dict()``, ``rebuild()`` and ``nonfinite``.

        Raises
        ------
        ValueError
            Here for options out of range; at the first compressed step, on every rank, if ranks
            have different methods, options or parameters.

        Examples
        --------
        >>> ddp = DistributedDataParallel(model)
        >>> ddp.register_comm_hook(None, EControl(TopK(ratio=0.01)).hook(model))
        """
        options = dict(process_group=process_group, start_step=start_step, nonfinite=nonfinite)
        return Hook(self, model, **options)

    def _exchange(self, state, grads):
        if state.exchange is None or not state.exchange.fits(grads):
            state.exchange = Exchange(self, state, grads)
        return state.exchange

    def __repr__(self):  # noqa: D105
        options = {name: value for name, value in vars(self).items() if name != "compressor"}
        listed = "".join(f", {name}={value!r}" for name, value in options.items())
        return f"{type(self).__name__}({self.compressor}{listed})"


class ErrorFeedback(Method):
    r"""What could not be sent is added to the next gradient.

    .. math:: p = \text{decay}\, e + g, \quad \Delta = C(p), \quad e \leftarrow p - \Delta,
              \quad u = \text{mean}\, \Delta

    Seide et al. 2014; Karimireddy, Rebjock, Stich, Jaggi 2019, arXiv:1901.09847, Algorithm 2. There
    the residual holds the learning rate; here it is in units of the gradient, so that another
    learning rate is that of old residuals too.

    Parameters
    ----------
    compressor : compressor
    decay : float
        In [0, 1]; below 1 for pseudo-gradients (SparseLoCo). 0 is compression without feedback,
        which diverges.
    min_numel : int
        Smaller tensors are sent whole.

    Examples
    --------
    >>> method = ErrorFeedback(TopK(k=1), min_numel=0)
    >>> state = method.init([torch.zeros(2)])
    >>> method.decode(state, [method.encode(state, [torch.tensor([3.0, 1.0])])])
    [tensor([3., 0.])]
    """

    name = "feedback"

    def __init__(self, compressor, *, decay=1.0, min_numel=4096):
        super().__init__(compressor, min_numel=min_numel)
        if not 0 <= decay <= 1:
            refuse(self, "decay", decay, "a number in [0, 1]")
        self.decay = decay

    def rule(self, numels):
        """Return the constants of the update, for the engine."""
        return super().rule(numels) | {"decay": self.decay}


class EF21(Method):
    r"""Each rank sends the change of its gradient; all keep the sum of what was sent.

    .. math:: \Delta = C(g - h), \quad h \leftarrow h + \Delta, \quad
              H \leftarrow H + \text{mean}\, \Delta, \quad u = H

    Richtarik, Sokolov, Fatkhullin 2021, arXiv:2106.05203. With `momentum`, an average v of the
    gradients stands for g: EF21-SGDM, Fatkhullin, Tyurin, Richtarik 2023, arXiv:2305.15155.

    Parameters
    ----------
    compressor : compressor
    momentum : float, optional
        In (0, 1], the weight of the new gradient: v <- (1 - momentum) v + momentum g.
    min_numel : int
        Smaller tensors are sent whole.

    Examples
    --------
    >>> EF21(TopK(ratio=0.01), momentum=0.1).roles()
    ['shift', 'momentum', 'mean']
    """

    name = "ef21"
    shifted = True


class EControl(Method):
    r"""EF21 whose error is fed back with a gain: independent of data and noise on other ranks.

    .. math:: r = g - h, \quad \Delta = C(\eta e + r), \quad e \leftarrow e + r - \Delta, \quad
              h \leftarrow h + \Delta, \quad H \leftarrow H + \text{mean}\, \Delta, \quad u = H

    Gao, Islamov, Stich 2023, arXiv:2311.05645, Algorithm 1. With `momentum`, an average of the
    gradients stands for g (EControl-M, ours). eta = 0 is EF21, bit for bit.

    Parameters
    ----------
    compressor : compressor
    eta : float, optional
        The gain. Converges up to 1.5 delta and diverges at 3 delta, delta being the compressor's
        contraction. None: delta/2. A warning above delta, ValueError above 3 delta.
    momentum : float, optional
        As for :class:`EF21`.
    min_numel : int
        Smaller tensors are sent whole.

    Raises
    ------
    ValueError, TypeError
        For what is out of range; eta only once the sizes are known, by :meth:`encode`.

    Examples
    --------
    >>> EControl(TopK(ratio=0.1)).gain([1000])
    0.05
    """

    name = "econtrol"
    shifted = True

    def __init__(self, compressor, *, eta=None, momentum=None, min_numel=4096):
        super().__init__(compressor, momentum=momentum, min_numel=min_numel)
        if eta is not None and not (eta >= 0 and math.isfinite(eta)):
            refuse(self, "eta", eta, "a number of at least 0")
        self.eta = eta

    def gain(self, numels):
        """Return eta for compressed tensors, or a bucket of them, of these sizes."""
        delta = min((self.compressor.delta(n) for n in numels if n > 0), default=1.0)
        worst_case = delta <= 0 or type(self.compressor).__name__ == "Sign"
        if worst_case:
            if self.eta is None:
                refuse(self, "eta", None, f"a number: {self.compressor} guarantees too little")
            return self.eta
        eta = 0.5 * delta if self.eta is None else self.eta
        if eta > 3 * delta:
            refuse(self, "eta", eta, f"at most {delta:.3g}, the compressor's contraction")
        if eta > delta:
            warnings.warn(
                f"EControl: eta: got {eta:.3g}, above the compressor's contraction {delta:.3g}; it "
                "diverges at 3 times that.",
                stacklevel=4,
            )
        return eta

    def rule(self, numels):
        """Return the constants of the update, for the engine."""
        return super().rule(numels) | {"eta": self.gain(numels)}


class DGC(Method):
    r"""Momentum before selection, and factor masking: deep gradient compression.

    .. math:: m \leftarrow \mu m + g, \quad v \leftarrow v + m, \quad \Delta = C(v), \quad
              v \leftarrow v - \Delta, \quad m \leftarrow 0 \text{ where sent}, \quad
              u = \text{mean}\, \Delta

    Lin, Han, Mao, Wang, Dally 2018, arXiv:1712.01887, Algorithm 4. The optimizer that gets u must
    have no momentum of its own. Tensors that are sent whole have m as their key.

    Parameters
    ----------
    compressor : compressor
        One that keeps some elements.
    momentum : float
        mu, in [0, 1).
    nesterov : bool
        m <- mu (m + g), v <- v + m + g.
    masking : bool
    min_numel : int
        Smaller tensors are sent whole.

    Examples
    --------
    >>> DGC(TopK(ratio=0.001)).roles()
    ['error', 'momentum']
    """

    name = "dgc"

    def __init__(self, compressor, *, momentum=0.9, nesterov=False, masking=True, min_numel=4096):
        super().__init__(compressor, min_numel=min_numel)
        if not 0 <= momentum < 1:
            refuse(self, "momentum", momentum, "a number in [0, 1)")
        if compressor.record([1])["select"] == "dense":
            refuse(self, "compressor", compressor, f"one that keeps some elements, as {TopK(k=1)}")
        self.mu, self.nesterov, self.masking = momentum, nesterov, masking

    def rule(self, numels):
        """Return the constants of the update, for the engine."""
        own = {"mu": self.mu, "nesterov": self.nesterov, "masking": self.masking}
        return super().rule(numels) | own
