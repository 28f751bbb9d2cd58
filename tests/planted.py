"""Norms in float64, rounded once, and the same with one error planted in a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import normalform as nf
from normalform.testing import HARD_INPUTS


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def hard_input(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One of ``HARD_INPUTS``, and a gradient of the output."""
    x = HARD_INPUTS[kind]((4, 3, 8, 8), torch.Generator().manual_seed(4)).to(dtype)
    return x, normal(*x.shape).to(dtype)


def randomized(layer: nn.Module) -> nn.Module:
    """With parameters and buffers that tell a layer that ignores them from one that does not."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.5 + torch.randn(tensor.shape, generator=generator).abs())
            else:
                tensor.fill_(4)
        if getattr(layer, "weight", None) is not None:
            layer.weight[..., ::2] *= -1
    return layer


class Exact(nn.BatchNorm2d):
    """Batch norm in float64, rounded once. Errors are planted by overriding a step."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((0, 2, 3), keepdim=True)
        return mean, (x - mean).square().mean((0, 2, 3), keepdim=True)

    def rstd(self, var: Tensor) -> Tensor:
        return 1 / (var + self.eps).sqrt()

    def apply_to(self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return (x - mean) * scale + bias

    def learned(self, var: Tensor, n: int) -> Tensor:
        return var * n / (n - 1)

    def forward(self, x: Tensor) -> Tensor:
        wide, n = x.double(), x.numel() // x.shape[1]
        mean, var = (
            t.double().view(1, -1, 1, 1).clone() for t in (self.running_mean, self.running_var)
        )
        if self.training:
            mean, var = self.moments(wide)
            self.learn(self.running_mean, mean)
            self.learn(self.running_var, self.learned(var, n))
        scale, bias = self.weight.double().view(1, -1, 1, 1), self.bias.double().view(1, -1, 1, 1)
        return self.apply_to(wide, mean, self.rstd(var) * scale, bias).to(x.dtype)

    def learn(self, buffer: Tensor, new: Tensor) -> None:
        moved = (1 - self.momentum) * buffer.double() + self.momentum * new.detach().flatten()
        buffer.copy_(torch.where(moved.to(buffer.dtype).isfinite(), moved, buffer))


class Unbiased(Exact):
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True)


class OnePass(Exact):
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((0, 2, 3), keepdim=True)
        return mean, x.square().mean((0, 2, 3), keepdim=True) - mean.square()


class FloatMoments(Exact):
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().moments(x.float())
        return mean.double(), var.double()


class EpsOutside(Exact):
    def rstd(self, var: Tensor) -> Tensor:
        return 1 / (var.sqrt() + self.eps)


class NoEps(Exact):
    def rstd(self, var: Tensor) -> Tensor:
        return var.rsqrt()


class Folded(Exact):
    def apply_to(self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return x.float() * scale.float() + (bias - mean * scale).float()


class Scaled(Exact):
    def apply_to(self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return 1.004 * super().apply_to(x, mean, scale, bias)


class OneElement(Exact):
    def apply_to(self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        y = super().apply_to(x, mean, scale, bias)
        factor = torch.ones_like(y)
        factor[1, 2, 3, 0] += 1e-5
        return factor * y


class OneNaN(Exact):
    def apply_to(self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        y = super().apply_to(x, mean, scale, bias)
        return y.where(y != y[0, 0, 0, 0], math.nan)


class LearnsBiased(Exact):
    def learned(self, var: Tensor, n: int) -> Tensor:
        return var


class ConstantMean(Exact):
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().moments(x.detach())[0], super().moments(x)[1]


class ConstantVariance(Exact):
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().moments(x)[0], super().moments(x.detach())[1]


class ExactSwitch(nf.SwitchNorm2d):
    """Switchable norm in float64, rounded once."""

    def shares(self) -> tuple[Tensor, Tensor]:
        return self.mean_weight.double().softmax(0), self.var_weight.double().softmax(0)

    def blend(self, w: Tensor, v: Tensor, means: Tensor, vars_: Tensor) -> tuple[Tensor, Tensor]:
        mean = sum(share * (m - means[0]) for share, m in zip(w, means, strict=True))
        return mean + means[0], sum(share * var for share, var in zip(v, vars_, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double()
        axes = [(2, 3), (1, 2, 3), (0, 2, 3)]
        means = [wide.mean(a, keepdim=True) for a in axes]
        vars_ = [
            (wide - m).square().mean(a, keepdim=True) for m, a in zip(means, axes, strict=True)
        ]
        mean, var = self.blend(*self.shares(), means, vars_)
        weight, bias = (p.double().view(1, -1, 1, 1) for p in (self.weight, self.bias))
        return ((wide - mean) / (var + self.eps).sqrt() * weight + bias).to(x.dtype)


class LinearShares(ExactSwitch):
    def shares(self) -> tuple[Tensor, Tensor]:
        w, v = self.mean_weight.double(), self.var_weight.double()
        return w / w.sum(), v / v.sum()


class OneSetOfShares(ExactSwitch):
    def shares(self) -> tuple[Tensor, Tensor]:
        return super().shares()[0], super().shares()[0] + 0 * super().shares()[1]


class ConstantShares(ExactSwitch):
    def shares(self) -> tuple[Tensor, Tensor]:
        w, v = super().shares()
        return w, v.detach() + 0 * v


class WithSpread(ExactSwitch):
    def blend(self, w: Tensor, v: Tensor, means: Tensor, vars_: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().blend(w, v, means, vars_)
        spread = sum(share * (m - mean).square() for share, m in zip(v, means, strict=True))
        return mean, var + spread
