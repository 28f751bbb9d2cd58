"""Layers: parameters, buffers and a recipe, nothing else."""

from normalform.layers.frozen import FrozenBatchNorm1d as FrozenBatchNorm1d
from normalform.layers.frozen import FrozenBatchNorm2d as FrozenBatchNorm2d
from normalform.layers.frozen import FrozenBatchNorm3d as FrozenBatchNorm3d
from normalform.layers.mixing import GhostBatchNorm1d as GhostBatchNorm1d
from normalform.layers.mixing import GhostBatchNorm2d as GhostBatchNorm2d
from normalform.layers.mixing import GhostBatchNorm3d as GhostBatchNorm3d
from normalform.layers.mixing import SwitchNorm1d as SwitchNorm1d
from normalform.layers.mixing import SwitchNorm2d as SwitchNorm2d
from normalform.layers.mixing import SwitchNorm3d as SwitchNorm3d
from normalform.layers.plain import GroupNorm as GroupNorm
from normalform.layers.plain import LayerNorm as LayerNorm
from normalform.layers.plain import RMSNorm as RMSNorm
from normalform.layers.running import BatchNorm1d as BatchNorm1d
from normalform.layers.running import BatchNorm2d as BatchNorm2d
from normalform.layers.running import BatchNorm3d as BatchNorm3d
from normalform.layers.running import InstanceNorm1d as InstanceNorm1d
from normalform.layers.running import InstanceNorm2d as InstanceNorm2d
from normalform.layers.running import InstanceNorm3d as InstanceNorm3d
from normalform.layers.table import get_norm_layer as get_norm_layer
