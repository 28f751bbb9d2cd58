"""Known bugs of norms, planted one at a time: a suite that lets one live is too loose.

A mutant replaces a piece of the source of a function, or of a file of compiled kernels.
``killed_by`` calls the test that must fail.
"""

import __future__

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from numba.core.dispatcher import Dispatcher

import test_cpu_kernels as cpu
import test_promise as promise
import test_recipes
from normalform import path, recipes
from normalform.kernels import ByPasses, composite, eager, known, plan, two_float
from normalform.kernels.cpu import blend, columns, compiled, layout, planes, rows, steps, team
from normalform.layers import running


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in the source of ``where``."""

    bug: str
    where: Callable | ModuleType
    old: str
    new: str
    killed_by: Callable[[], object]

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put what is changed wherever the original is known; kernels are chosen anew."""
        source = textwrap.dedent(inspect.getsource(self.where))
        assert source.count(self.old) == 1, f"{self.bug}: {self.old!r} is not (once) in the source"
        flags = __future__.annotations.compiler_flag
        code = compile(source.replace(self.old, self.new), f"<{self.bug}>", "exec", flags)
        monkeypatch.setattr(known, "_remembered", {})
        if isinstance(self.where, ModuleType):
            _plant_file(self.where, code, self.old, monkeypatch)
        else:
            _plant_function(self.where, code, monkeypatch)


def _plant_function(function, code, monkeypatch):
    made: dict[str, Callable] = {}
    exec(code, function.__globals__, made)
    (changed,) = made.values()
    owners = [m for name, m in sys.modules.items() if name.startswith("normalform")]
    owners += [value for m in owners for value in vars(m).values() if inspect.isclass(value)]
    for owner in owners:
        if vars(owner).get(function.__name__) is function:
            monkeypatch.setattr(owner, function.__name__, changed)


def _plant_file(module, code, old, monkeypatch):
    """Machine code goes by name and by the files as they are: none is read or kept on disk."""
    monkeypatch.setattr(compiled, "folders", list)
    changed = _made(module, code)
    vars(changed).update(_kernels_without(module, old))
    if module is not compiled:
        _put(changed, monkeypatch)
        return
    changed.folders = list
    monkeypatch.setitem(sys.modules, module.__name__, changed)
    for kernels in (planes, columns, rows, blend):
        code = compile(inspect.getsource(kernels), kernels.__file__, "exec")
        again = _made(kernels, code)
        monkeypatch.setitem(sys.modules, kernels.__name__, again)
        _put(again, monkeypatch)


def _kernels_without(module, old):
    """Those kernels that reach no function with ``old`` in it: they are compiled already."""
    functions = {
        name: getattr(value, "function", getattr(value, "py_func", value))
        for name, value in vars(module).items()
        if isinstance(value, compiled.Kernel | Dispatcher)
    }

    def reaches(name):
        here = functions[name]
        called = [other for other in here.__code__.co_names if other in functions]
        return old in inspect.getsource(here) or any(map(reaches, called))

    kernels = {k: v for k, v in vars(module).items() if isinstance(v, compiled.Kernel)}
    without = {name: kernel for name, kernel in kernels.items() if not reaches(name)}
    return {} if without == kernels else without  # what Numba finds by overloading has no name


def _made(module, code):
    changed = ModuleType(module.__name__)
    changed.__file__ = module.__file__
    exec(code, vars(changed))
    return changed


def _put(changed, monkeypatch):
    name = changed.__name__.rpartition(".")[2]
    for user in (layout, steps):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, changed)


def hard(name, hard="plain", kernel="eager", training=True):
    return lambda: promise.test_hard_inputs(name, hard, kernel, training)


def compiled_hard(name, kind, dtype=torch.float32):
    return lambda: cpu.test_hard_inputs(name, kind, dtype)


def compiled_plain(name, dtype=torch.float32, training=True):
    return lambda: cpu.test_the_promise(name, dtype, training)


def compiled_threads(name):
    def same_bits():
        with pytest.MonkeyPatch.context() as monkeypatch:
            cpu.test_the_same_bits_however_many_threads_there_were(name, monkeypatch)

    return same_bits


MUTANTS = [
    # Statistics
    Mutant(
        "unbiased variance",
        plan._merge,
        "average(square if var is None else square + var)",
        "average(square if var is None else square + var) * count / (count - 1)",
        hard("batch 2d"),
    ),
    Mutant(
        "variance in one pass",
        plan._merge,
        "distance.sub_(rest).square_()",
        "shift.square() - (near + rest).square()",
        hard("batch 2d", "mean 1e6"),
    ),
    Mutant(
        "statistics in float32",
        eager.moments,
        "x.to(torch.float64)",
        "x.to(torch.float32)",
        lambda: promise.test_sizes_off_the_beaten_track("rms", (65537, 7), "eager"),
    ),
    Mutant(
        "mean in one float64",
        plan._merge,
        "return Moments(near, rest, ",
        "return Moments(near + rest, torch.zeros_like(rest), ",
        promise.test_an_element_next_to_the_mean,
    ),
    Mutant(
        "pooled without the spread between the means",
        plan._merge,
        "average(square if var is None else square + var)",
        "average(square if var is None else var)",
        hard("switch 2d"),
    ),
    Mutant(
        "root mean square of centred values",
        plan._merge,
        "if not cells.center:",
        "if False:",
        hard("rms"),
    ),
    Mutant(
        "channels of a group taken apart",
        plan.split,
        "t.view(blocks, run.block, groups, t.shape[1] // groups, *t.shape[2:])",
        "t.view(blocks, run.block, t.shape[1] // groups, groups, *t.shape[2:]).transpose(2, 3)",
        hard("group"),
    ),
    Mutant(
        "sums in an order that depends on threads",
        plan.total,
        "if d not in dims) > 1:",
        "if d not in dims) > 0:",
        lambda: promise.test_same_bits_for_any_number_of_threads("eager"),
    ),
    Mutant(
        "the last block of a batch joins the one before",
        recipes.Recipe._runs,
        "tail * values == 1",
        "tail > 0",
        lambda: test_recipes.test_ghost_blocks_cover_the_batch(),
    ),
    # Coefficients
    Mutant(
        "eps outside the root",
        plan.blend,
        "(var + plan.eps).rsqrt()",
        "1 / (var.sqrt() + plan.eps)",
        hard("batch 2d", "variance below eps"),
    ),
    Mutant(
        "variances blended by the weights of the means",
        plan.blend,
        "weights[1][k] * branch.var",
        "weights[0][k] * branch.var",
        hard("switch 2d"),
    ),
    Mutant(
        "a branch of one value kept in the blend",
        path._drop_single_values,
        "max(cells.counts) != 1",
        "True",
        hard("switch rows"),
    ),
    # Apply
    Mutant(
        "scale and shift folded in float32",
        eager.apply,
        "_centred(x, at).mul_(",
        "(x.float() - (at.shift + at.mean).float()).mul(",
        hard("batch 2d", "mean 1e6"),
    ),
    Mutant(
        "rounded before the bias is added",
        eager.apply,
        "y.add_(bias)",
        "y.to(x.dtype) + bias",
        lambda: promise.test_dtypes_and_layouts(
            "batch 2d", "contiguous", promise.DTYPES[1], "eager"
        ),
    ),
    Mutant(
        "evaluation by batch statistics",
        running._Batch.forward,
        "training = self.training or",
        "training = True or",
        hard("batch 2d", training=False),
    ),
    # Gradients
    Mutant(
        "gradient without the share of the mean",
        plan.terms_of_dx,
        "[g / n for",
        "[0 * g / n for",
        hard("layer, token"),
    ),
    Mutant(
        "gradient with half the share of the variance",
        plan.terms_of_dx,
        "2 * g / n",
        "g / n",
        hard("instance 2d"),
    ),
    Mutant(
        "gradient of the weight not divided by std",
        ByPasses.backward,
        "product * at.rstd",
        "product",
        hard("group"),
    ),
    Mutant(
        "gradient of the logits dropped",
        ByPasses.backward,
        "gradient.to(logit)",
        "0 * logit",
        hard("switch 2d"),
    ),
    Mutant(
        "x cast twice, its gradient rounded twice",
        composite,
        "(wide - shift - mean)",
        "(x.to(wide.dtype) - shift - mean)",
        lambda: promise.test_gradients_that_will_be_differentiated_again(
            "batch 2d", 0.0, promise.DTYPES[1], "eager"
        ),
    ),
    # Running statistics
    Mutant(
        "biased running variance",
        plan.population,
        "m.var * (n / max(n - 1, 1))",
        "m.var",
        hard("batch 2d"),
    ),
    Mutant(
        "momentum the wrong way round",
        path.update,
        "new, momentum)",
        "new, 1 - momentum)",
        hard("switch 2d"),
    ),
    Mutant(
        "nan taken into the running statistics",
        path.update,
        "torch.where(finite, new, buffer)",
        "new",
        lambda: promise.test_running_statistics_stay_finite("batch 2d", "eager"),
    ),
    # Two floats
    Mutant(
        "the low half of x - mean dropped",
        two_float._centred,
        "more + (error - rest_low)",
        "0 * more",
        hard("switch rows", "mean 1e6", "two_float", training=False),
    ),
    Mutant(
        "errors of sums dropped",
        two_float._sum,
        "_renormalize(high, error + low)",
        "_renormalize(high, low)",
        lambda: promise.test_sizes_off_the_beaten_track("batch 2d", (2, 6, 251, 253), "two_float"),
    ),
    Mutant(
        "errors of products dropped",
        two_float._product,
        "((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2",
        "torch.zeros_like(high)",
        lambda: promise.test_sizes_off_the_beaten_track("rms", (65537, 7), "two_float"),
    ),
    Mutant(
        "no power of two before squaring",
        two_float._moments,
        "exponent = -_exponent(largest)",
        "exponent = 0 * _exponent(largest)",
        hard("batch 2d", "huge", "two_float"),
    ),
    # Compiled: statistics
    Mutant(
        "planes: unbiased variance",
        planes,
        "centred(row, shift, rest, square) / row.size",
        "centred(row, shift, rest, square) / (row.size - 1)",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "planes: variance in one pass without a shift",
        planes,
        "shift = load(row, 0)",
        "shift = 0.0",
        compiled_hard("instance, tracked", "mean 1e6"),
    ),
    Mutant(
        "planes: float64 in one pass",
        planes,
        "if row.dtype != types.float64:",
        "if True:",
        compiled_hard("instance, tracked", "outlier", torch.float64),
    ),
    Mutant(
        "planes: the last value of a plane dropped",
        planes,
        "else p[t.EXTENT]), at",
        "else p[t.EXTENT] - 1), at",
        compiled_plain("instance, pieces"),
    ),
    Mutant(
        "planes: the last value of a piece dropped",
        planes,
        "start + (last if",
        "start + (last - 1 if",
        compiled_plain("instance, pieces"),
    ),
    Mutant(
        "columns: variance in one pass without a shift",
        columns,
        "shift = load(data, start + c * width)",
        "shift = 0.0",
        compiled_hard("batch, last", "mean 1e6"),
    ),
    Mutant(
        "columns: variance about the first value",
        columns,
        "var -= rest * rest",
        "pass",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "columns: float64 in one pass",
        columns,
        "answer = data.dtype == types.float64",
        "answer = False",
        compiled_hard("batch, last", "outlier", torch.float64),
    ),
    Mutant(
        "columns: rows left over by the fold dropped",
        columns,
        "rows % p[t.FOLD] * values",
        "0",
        lambda: cpu.test_an_element_next_to_the_mean(True),
    ),
    Mutant(
        "columns: rows left over by the unrolled loop dropped",
        columns,
        "row += 4\n    while row < rows:",
        "row += 4\n    while row + 1 < rows:",
        lambda: cpu.test_an_element_next_to_the_mean(True),
    ),
    Mutant(
        "columns: the last channel of a smaller tile dropped",
        columns,
        "else p[t.CHANNELS]\n",
        "else p[t.CHANNELS] - 1\n",
        compiled_plain("switch, tiles"),
    ),
    Mutant(
        "rows: unbiased variance",
        rows,
        "var = square / count",
        "var = square / (count - 1)",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "rows: variance in one pass without a shift",
        rows,
        "shift = load(piece, 0)",
        "shift = 0.0",
        compiled_hard("layer, many rows", "mean 1e6"),
    ),
    Mutant(
        "rows: pieces pooled without the spread between their means",
        rows,
        "square += squares + apart * apart * (count / after * piece.size)",
        "square += squares",
        compiled_plain("layer, long rows"),
    ),
    Mutant(
        "rows: the last value of a piece dropped",
        rows,
        "row[start : start + PIECE]\n        shift",
        "row[start : start + PIECE - 1]\n        shift",
        compiled_plain("layer, long rows"),
    ),
    Mutant(
        "rows: root mean square of centred values",
        rows,
        "if p[t.CENTER] == 1:",
        "if True:",
        compiled_plain("rms, many rows"),
    ),
    Mutant(
        "pooled without the spread between the means, compiled",
        blend,
        "+ (count * share) * (apart * apart)",
        "",
        compiled_plain("switch, parts"),
    ),
    # Compiled: coefficients and apply
    Mutant(
        "eps outside the root, compiled",
        blend,
        "math.sqrt(to[t.RSTD * channels + c] + eps)",
        "(math.sqrt(to[t.RSTD * channels + c]) + eps)",
        compiled_hard("batch, last", "variance below eps"),
    ),
    Mutant(
        "rows: eps outside the root",
        rows,
        "math.sqrt(var + double_of_bits(p[t.EPS]))",
        "(math.sqrt(var) + double_of_bits(p[t.EPS]))",
        compiled_hard("layer, many rows", "variance below eps"),
    ),
    Mutant(
        "second half of the mean dropped",
        blend,
        "-low * scale",
        "0.0",
        lambda: cpu.test_an_element_next_to_the_mean(False),
    ),
    Mutant(
        "rows: second half of the mean dropped",
        rows,
        "low = (near - high) + rest",
        "low = 0.0",
        promise.test_an_element_next_to_the_mean,
    ),
    Mutant(
        "sums of the small arrays in any order",
        compiled,
        "helper = numba.njit(",
        'helper = numba.njit(fastmath={"reassoc", "nsz"}, ',
        lambda: cpu.test_an_element_next_to_the_mean(False),
    ),
    Mutant(
        "planes: shift folded into the bias",
        planes,
        "(load(row, j) - high) * scale + shift",
        "load(row, j) * scale + (shift - high * scale)",
        lambda: cpu.test_an_element_next_to_the_mean(False),
    ),
    Mutant(
        "variances blended by the weights of the means, compiled",
        blend,
        "to_var * cell[3 * cells + g]",
        "to_mean * cell[3 * cells + g]",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "softmax overflows",
        blend,
        "[2 * k + which] - largest)",
        "[2 * k + which])",
        cpu.test_logits_of_any_size,
    ),
    Mutant(
        "bfloat16 cut off",
        compiled,
        "bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))",
        "bits",
        compiled_plain("layer, many rows", torch.bfloat16),
    ),
    Mutant(
        "nan rounded as a number",
        compiled,
        " if value == value else np.uint16(0x7FC0)",
        "",
        cpu.test_nan_stays_nan_in_bfloat16,
    ),
    # Compiled: gradients
    Mutant(
        "gradient without the share of the mean, compiled",
        blend,
        "to_mean * sums[g] / n",
        "0.0",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "gradient with half the share of the variance, compiled",
        blend,
        "to_var * 2.0 * sums",
        "to_var * sums",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "rows: gradient without the share of the mean",
        rows,
        "-total * rstd / values if",
        "0.0 if",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "rows: gradient with half the share of the variance",
        rows,
        "(rstd * rstd) / values",
        "(rstd * rstd) / (2 * values)",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "gradient of the weight not divided by std, compiled",
        blend,
        "scratch[grads + t.PRODUCT * channels] * rstd",
        "scratch[grads + t.PRODUCT * channels]",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "rows: gradient of the weight not divided by std",
        rows,
        "(load(dy, j) * rstd) *",
        "load(dy, j) *",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "gradient of the logits dropped, compiled",
        blend,
        "weights[i] * (sums[i] - common)",
        "0.0",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "gradient of the logits without what the softmax has in common",
        blend,
        "weights[i] * (sums[i] - common)",
        "weights[i] * sums[i]",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "gradient of y read as if it lay as x does",
        steps.Compiled.backward,
        "dy.stride() != x.stride() or ",
        "",
        lambda: cpu.test_a_gradient_that_lies_otherwise_in_memory("batch, pieces", "channels last"),
    ),
    Mutant(
        "a slice of x read as if it were whole",
        steps.Compiled.forward,
        "if self.copies:",
        "if False:",
        lambda: promise.test_dtypes_and_layouts("batch 2d", "sliced", torch.float32, "auto"),
    ),
    # Compiled: running statistics
    Mutant(
        "biased running variance, compiled",
        blend,
        " * (n / (n - 1.0 if n > 2.0 else 1.0))",
        "",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "momentum the wrong way round, compiled",
        blend,
        "double_of_bits(a[t.MOMENTUM])",
        "1.0 - double_of_bits(a[t.MOMENTUM])",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "nan taken into the running statistics, compiled",
        blend,
        "if not abs(moved) < largest:",
        "if False:",
        lambda: promise.test_running_statistics_stay_finite("batch 2d", "auto"),
    ),
    Mutant(
        "the last block of a batch counted as a whole one",
        blend,
        "units = p[t.UNITS] - block * units",
        "pass",
        compiled_plain("ghost, tail"),
    ),
    Mutant(
        "a sample left over by blocks has a cell of its own",
        blend,
        "(block if block < last else last) *",
        "block *",
        hard("ghost 1d", kernel="auto"),
    ),
    # Compiled: threads
    Mutant(
        "pieces as many as threads",
        layout.Layout._lay_units,
        "-(-positions // PIECE)",
        "-(-positions * torch.get_num_threads() // PIECE)",
        compiled_threads("instance, pieces"),
    ),
    Mutant(
        "sums of as many rows as there are threads",
        layout.Layout._lay_rows,
        "max(1, min(64,",
        "max(1, min(torch.get_num_threads(),",
        compiled_threads("layer, many rows"),
    ),
    Mutant(
        "parts left over by the threads dropped",
        team,
        "range(thread * parts // threads, (thread + 1) * parts // threads)",
        "range(thread * (parts // threads), (thread + 1) * (parts // threads))",
        compiled_threads("batch, last"),
    ),
]
