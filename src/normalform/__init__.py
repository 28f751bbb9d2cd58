"""Every normalization from one idea: which elements share a mean and a variance."""

from inspect import ismodule as _is_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from torch.fx import wrap as _wrap

from normalform import functional as functional
from normalform import reference as reference
from normalform import testing as testing
from normalform.diagnose import diagnose as diagnose
from normalform.explain import explain as explain
from normalform.functional import norm as norm
from normalform.layers import BatchNorm1d as BatchNorm1d
from normalform.layers import BatchNorm2d as BatchNorm2d
from normalform.layers import BatchNorm3d as BatchNorm3d
from normalform.layers import FrozenBatchNorm1d as FrozenBatchNorm1d
from normalform.layers import FrozenBatchNorm2d as FrozenBatchNorm2d
from normalform.layers import FrozenBatchNorm3d as FrozenBatchNorm3d
from normalform.layers import GhostBatchNorm1d as GhostBatchNorm1d
from normalform.layers import GhostBatchNorm2d as GhostBatchNorm2d
from normalform.layers import GhostBatchNorm3d as GhostBatchNorm3d
from normalform.layers import GroupNorm as GroupNorm
from normalform.layers import InstanceNorm1d as InstanceNorm1d
from normalform.layers import InstanceNorm2d as InstanceNorm2d
from normalform.layers import InstanceNorm3d as InstanceNorm3d
from normalform.layers import LayerNorm as LayerNorm
from normalform.layers import RMSNorm as RMSNorm
from normalform.layers import SwitchNorm1d as SwitchNorm1d
from normalform.layers import SwitchNorm2d as SwitchNorm2d
from normalform.layers import SwitchNorm3d as SwitchNorm3d
from normalform.layers import get_norm_layer as get_norm_layer
from normalform.recipes import Recipe as Recipe
from normalform.recipes import recipe as recipe
from normalform.surgery import convert as convert
from normalform.surgery import fold as fold
from normalform.surgery import freeze as freeze
from normalform.surgery import param_groups as param_groups
from normalform.surgery import recalibrate as recalibrate
from normalform.surgery import revert as revert
from normalform.surgery import unfreeze as unfreeze
from normalform.warmup import warmup as warmup

_wrap("norm")  # this name too, see functional

if _TYPE_CHECKING:
    from normalform import lab as lab


def __dir__() -> list[str]:
    """What is public, without modules that are there because something was taken from them."""
    modules = "functional", "reference", "testing", "lab"
    return sorted([*modules, *(name for name, it in globals().items() if not _is_module(it))])


def __getattr__(name: str) -> _Any:
    """``nf.lab`` and ``nf.__version__``, which are looked up when they are first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("normalform")
    if name != "lab":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import normalform.lab

    return normalform.lab
