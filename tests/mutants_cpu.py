"""Known bugs of the compiled kernels, as ``mutants`` has those of the recipe."""

import pytest
import torch

import test_cpu_kernels as cpu
import test_known as known
import test_promise as promise
from mutants import hard
from mutation import Mutant
from normalform.kernels.cpu import (
    blend,
    columns,
    gradients,
    layout,
    memory,
    planes,
    row_gradients,
    rows,
    steps,
    team,
    values,
    vectors,
)


def compiled_hard(name, kind, dtype=torch.float32):
    return lambda: cpu.test_hard_inputs(name, kind, dtype)


def compiled_plain(name, dtype=torch.float32, training=True):
    return lambda: cpu.test_the_promise(name, dtype, training)


def beyond_the_cache(name):
    def accurate():
        with pytest.MonkeyPatch.context() as monkeypatch:
            cpu.test_tensors_larger_than_the_cache(name, torch.float32, True, monkeypatch)

    return accurate


def many_registers(name):
    def accurate():
        with pytest.MonkeyPatch.context() as monkeypatch:
            cpu.test_by_fours_or_one_by_one(name, True, monkeypatch)

    return accurate


def compiled_threads(name):
    def same_bits():
        with pytest.MonkeyPatch.context() as monkeypatch:
            cpu.test_the_same_bits_however_many_threads_there_were(name, monkeypatch)

    return same_bits


MUTANTS = [
    # Statistics
    Mutant(
        "planes: unbiased variance",
        planes,
        "var = square * of_all",
        "var = square * (of_all / (1.0 - of_all))",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "planes: variance in one pass without a shift",
        planes,
        "near, of_all = load(row, start)",
        "near, of_all = 0.0",
        compiled_hard("instance, tracked", "mean 1e6"),
    ),
    Mutant(
        "planes: float64 in one pass",
        planes,
        "if is_double(row):",
        "if False:",
        compiled_hard("instance, tracked", "outlier", torch.float64),
    ),
    Mutant(
        "planes: one ends a value too early, and so do all that follow",
        planes,
        "end, c = end + p[t.EXTENT], c + 1",
        "end, c = end + p[t.EXTENT] - 1, c + 1",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "planes: the last value of a cell that is one run dropped",
        planes,
        "(slot + 1) * p[t.RUN] * p[t.EXTENT]",
        "(slot + 1) * p[t.RUN] * p[t.EXTENT] - 1",
        compiled_plain("group, parts"),
    ),
    Mutant(
        "runs of several channels pooled as if there were one for each",
        blend,
        "size * step // p[t.RUN]",
        "size * step // p[t.RUN] - 1",
        compiled_plain("layer, several runs"),
    ),
    Mutant(
        "float64: the last run of several channels left out",
        blend,
        "range(c, c + size, p[t.RUN])",
        "range(c, c + size - p[t.RUN], p[t.RUN])",
        compiled_plain("group, many short planes", torch.float64),
    ),
    Mutant(
        "what sums over many slots round away is lost",
        blend,
        "missing + ((total - (after - part)) + (value - part))",
        "missing",
        lambda: promise.test_float64_of_many_samples((2048, 3, 12, 12), True, "cpu"),
    ),
    Mutant(
        "planes: the last value of a piece left out of the sums",
        planes,
        "_sums(start, stop, (x, dy, high))",
        "_sums(start, stop - 1, (x, dy, high))",
        compiled_plain("instance, pieces"),
    ),
    Mutant(
        "planes: a part begins with the plane it begins in",
        planes,
        "+ (item - plane * p[t.PIECES]) * p[t.LENGTH]",
        "",
        compiled_plain("batch, pieces"),
    ),
    Mutant(
        "planes: the coefficients of the unit before",
        planes,
        "            spread = t.spread_at(p, unit)",
        "            spread = t.spread_at(p, unit - 1)",
        compiled_plain("instance, a few samples a part"),
    ),
    Mutant(
        "vectors: a lane of the second of two sums left out",
        vectors,
        "range(0, LANES, 2), range(1, LANES, 2)",
        "range(0, LANES, 2), [*range(1, LANES - 1, 2), LANES - 2]",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "columns: variance in one pass without a shift",
        columns,
        "shifts[c] = load(x, start + c * width)",
        "shifts[c] = 0.0",
        compiled_hard("batch, last", "mean 1e6"),
    ),
    Mutant(
        "columns: variance about the first value",
        columns,
        "squares / count - rest * rest",
        "squares / count",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "columns: float64 in one pass",
        columns,
        "if is_double(x):",
        "if False:",
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
        "columns: a row that is left over by fours dropped from the moments",
        columns,
        "for row in range(fours, rows):\n        _moments_of_row(",
        "for row in range(fours, rows - 1):\n        _moments_of_row(",
        lambda: cpu.test_an_element_next_to_the_mean(True),
    ),
    Mutant(
        "columns: a row that is left over by fours dropped from the sums",
        columns,
        "for row in range(fours, rows):\n        x, g = data + row * step, dy + row * step\n",
        "for row in range(fours, rows - 1):\n        x, g = data + row * step, dy + row * step\n",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "columns: the fourth row with the third's output",
        columns,
        "(x, x + step, x + 2 * step, x + 3 * step, *at)",
        "(x, x + step, x + 2 * step, x + 2 * step, *at)",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "columns: the fourth row with the third's gradient",
        columns,
        "(*four, g, g + step, g + 2 * step, g + 3 * step, *at)",
        "(*four, g, g + step, g + 2 * step, g + 2 * step, *at)",
        compiled_plain("batch, last"),
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
        "square / values",
        "square / (values - 1)",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "rows, by fours: unbiased variance",
        rows,
        "q3 * of_all",
        "q3 / (n - 1)",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "rows: variance in one pass without a shift",
        rows,
        "load(data, i * step)",
        "0.0",
        compiled_hard("layer, many rows", "mean 1e6"),
    ),
    Mutant(
        "rows: pieces pooled without the spread between their means",
        rows,
        "(var + apart * apart * (count / after))",
        "var",
        compiled_plain("layer, long rows"),
    ),
    Mutant(
        "rows: the last value of a piece dropped",
        rows,
        "moments_of(row, start, stop)",
        "moments_of(row, start, stop - 1)",
        compiled_plain("layer, long rows"),
    ),
    Mutant(
        "rows: root mean square of centred values",
        rows,
        "_short_moments(x + at, step, values, of_all, p[t.CENTER], k)",
        "_short_moments(x + at, step, values, of_all, 1, k)",
        compiled_plain("rms, many rows"),
    ),
    Mutant(
        "rows: root mean square of centred values, long rows",
        rows,
        "if center == 0:",
        "if False:",
        compiled_plain("rms, long rows"),
    ),
    Mutant(
        "rows, by fours: float64 in one pass",
        rows,
        "values <= PIECE and not is_double(x)",
        "values <= PIECE",
        compiled_hard("layer, many rows", "outlier", torch.float64),
    ),
    Mutant(
        "pooled without the spread between the means, compiled",
        blend,
        "n * (var + apart * apart)",
        "n * var",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "channels side by side pooled without the spread between the means",
        blend,
        "n * (var + apart * apart)",
        "n * var",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "float64 pooled about the first slot",
        blend,
        "near += total / count",
        "near += 0.0 * total",
        lambda: cpu.test_float64_of_a_first_channel_far_from_the_others(True),
    ),
    # Coefficients and apply
    Mutant(
        "eps outside the root, compiled",
        blend,
        "(var + eps).inverse_root()",
        "(var + eps + eps).inverse_root()",
        compiled_hard("batch, last", "variance below eps"),
    ),
    Mutant(
        "rows: eps outside the root",
        rows,
        "math.sqrt((0.0 if var < 0.0 else var) + eps)",
        "(math.sqrt(0.0 if var < 0.0 else var) + eps)",
        compiled_hard("layer, many rows", "variance below eps"),
    ),
    Mutant(
        "second half of the mean dropped",
        blend,
        "bias - low * scale",
        "bias",
        lambda: cpu.test_an_element_next_to_the_mean(False),
    ),
    Mutant(
        "rows: second half of the mean dropped",
        rows,
        "high, (near - high) + rest, rstd",
        "high, 0.0, rstd",
        promise.test_an_element_next_to_the_mean,
    ),
    Mutant(
        "sums of the small arrays in any order",
        values,
        'FUSED = ("contract",)',
        'FUSED = ("contract", "reassoc", "nsz")',
        lambda: cpu.test_an_element_next_to_the_mean(False),
    ),
    Mutant(
        "rows: weights that float32 computes worse with are like any",
        rows,
        "is_double(x) or wide[2 * all_] > 0.0",
        "is_double(x)",
        lambda: cpu.test_weights_that_float32_computes_worse_with("layer, many rows", 1e-41),
    ),
    Mutant(
        "rows: what float32 loses of the mean on the wrong side",
        rows,
        "(d * more - low)",
        "(d * more + low)",
        compiled_hard("layer, many rows", "mean 1e6"),
    ),
    Mutant(
        "rows: the wrong bias where weights repeat within a row",
        rows,
        "n, weight, bias, k, p[t.AHEAD])\n        i += n",
        "n, weight, weight, k, p[t.AHEAD])\n        i += n",
        compiled_plain("layer, last"),
    ),
    Mutant(
        "rows: a quarter of the sums dropped where weights repeat within a row",
        row_gradients,
        "(k[3] + k[8]) + (k[13] + k[18])",
        "(k[3] + k[8]) + k[13]",
        many_registers("layer, last"),
    ),
    Mutant(
        "planes: shift folded into the bias",
        planes,
        "return [(x - high) * scale + shift for x in rows]",
        "return [x * scale + (shift - high * scale) for x in rows]",
        lambda: cpu.test_an_element_next_to_the_mean(False),
    ),
    Mutant(
        "variances blended by the weights of the means, compiled",
        blend,
        "c0, c1, (near, rest, var, to_var))",
        "c0, c1, (near, rest, var, to_mean))",
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
        memory,
        "builder.add(builder.add(bits, constant(INT, 0x7FFF, lanes)), odd)",
        "bits",
        compiled_plain("layer, many rows", torch.bfloat16),
    ),
    Mutant(
        "nan rounded as a number",
        memory,
        "builder.select(number, nearest, constant(INT, 0x7FC0, lanes))",
        "nearest",
        cpu.test_nan_stays_nan_in_bfloat16,
    ),
    Mutant(
        "vectors: values that two vectors share summed twice",
        vectors,
        "value = builder.select(again, zeros, value)",
        "value = builder.fadd(value, zeros)",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "vectors: values that two vectors share added twice",
        vectors,
        "value if again is None else builder.select(again, before, value)",
        "value",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "vectors: what fills no vector left out",
        vectors,
        'builder.icmp_signed("<", whole, stop)',
        'builder.icmp_signed("<", stop, whole)',
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "vectors: what follows the last whole line left out",
        vectors,
        "self._replace(start=last, at_once=1)",
        "self._replace(start=stop, at_once=1)",
        beyond_the_cache("instance, pieces"),
    ),
    Mutant(
        "vectors: the first whole line left out",
        vectors,
        "cgutils.for_range_slice(builder, first, last, WORD(line))",
        "cgutils.for_range_slice(builder, builder.add(first, WORD(line)), last, WORD(line))",
        beyond_the_cache("layer, long rows"),
    ),
    Mutant(
        "numbers too large for float32 taken for others",
        values,
        "2.0**100",
        "2.0**1000",
        lambda: cpu.test_statistics_that_float32_cannot_hold("batch, last", 1e-36),
    ),
    Mutant(
        "numbers that have few digits in float32 taken for others",
        values,
        "LEAST, MOST = 2.0**-100",
        "LEAST, MOST = 0.0",
        lambda: cpu.test_statistics_that_float32_cannot_hold("group, parts", 1e28),
    ),
    Mutant(
        "planes: a number that float32 computes worse with is one of any",
        vectors,
        "few if apart is None else builder.or_(few, apart)",
        "few",
        lambda: cpu.test_statistics_that_float32_cannot_hold("batch, pieces", 1e28),
    ),
    Mutant(
        "columns: a coefficient that float32 computes worse with is one of any",
        columns,
        "is_double(x) or _any_beyond(0, count, rows)[0] == 0.0",
        "True",
        lambda: cpu.test_statistics_that_float32_cannot_hold("batch, last", 1e28),
    ),
    Mutant(
        "columns: the weight of evaluation that is none for float32",
        columns,
        "any_beyond(0, c1 - c0, (factor,))[0] > 0.0",
        "any_beyond(0, c1 - c0, (factor,))[0] < 0.0",
        lambda: cpu.test_weights_that_float32_computes_worse_with("batch, last", 1e-39),
    ),
    Mutant(
        "columns: coefficients in float64 of the wrong channel",
        columns,
        "rows[i][c], width)",
        "rows[i][0], width)",
        lambda: cpu.test_statistics_that_float32_cannot_hold("batch, short planes", 1e28),
    ),
    Mutant(
        "the mean that x is taken about is no number of float32",
        blend,
        "high = (near + rest).nearest(most)",
        "high = near + rest",
        compiled_hard("batch, pieces", "mean 1e6"),
    ),
    Mutant(
        "the point that dx of a blend is taken about is no number of float32",
        gradients,
        "(steep + least).inverse()).nearest(most),)",
        "(steep + least).inverse()),)",
        compiled_hard("switch, pieces", "mean 1e6"),
    ),
    Mutant(
        "planes: shift folded into the bias, of means near zero",
        planes,
        "return [(x - high) * scale + shift for x in rows]",
        "return [x * scale + (shift - high * scale) for x in rows]",
        lambda: cpu.test_roundings_of_float32_are_few("batch, pieces", 3.0),
    ),
    Mutant(
        "eps outside the root, of cells of several channels",
        blend,
        "(var + eps).inverse_root()",
        "(var + eps + eps).inverse_root()",
        compiled_hard("group, parts", "variance below eps"),
    ),
    Mutant(
        "second half of the mean dropped, of cells of several channels",
        blend,
        "return high, (near - high) + rest,",
        "return high, near - near,",
        cpu.test_an_element_next_to_the_mean_of_a_group,
    ),
    # Gradients
    Mutant(
        "gradient of one channel without the share of the mean",
        gradients,
        "tilt, dmean * of_all + ",
        "tilt, ",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "gradient of one channel with half the share of the variance",
        gradients,
        "twice * dvar",
        "dvar",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "gradient of a blend without the share of the mean",
        gradients,
        "to_mean * dmean, dvar",
        "to_mean * (dmean - dmean), dvar",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "variances blended by the weights of the means, cells of several channels",
        blend,
        "start, stop, (*of_cell, to_var))",
        "start, stop, (*of_cell, to_mean))",
        compiled_plain("switch, groups"),
    ),
    Mutant(
        "gradients of a blend's cells with the mean's in the place of the variance's",
        gradients,
        "c0, c1, (of_mean, of_var))",
        "c0, c1, (of_mean, of_mean))",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "gradients of logits from the last cell alone",
        gradients,
        "logit_mean + of_means, logit_var + of_vars",
        "of_means, of_vars",
        compiled_plain("switch, groups"),
    ),
    Mutant(
        "gradients of weight and bias of the first share again",
        gradients,
        "c0 = part * SHARE",
        "c0 = 0",
        compiled_plain("switch, tiles"),
    ),
    Mutant(
        "gradient of a blend with half the share of the variance",
        gradients,
        "2.0 * to_var",
        "to_var",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "blend: dx about the blended mean",
        gradients,
        "(high + apart * (steep + least).inverse()).nearest(most)",
        "high",
        lambda: promise.test_branches_of_means_far_apart(("layer", "batch"), "cpu"),
    ),
    Mutant(
        "blend: dx about a mean to which branches may count less than nothing",
        gradients,
        "(dvar * n.inverse() * twice).magnitude()",
        "(dvar * n.inverse() * twice)",
        lambda: promise.test_branches_of_means_far_apart(("group:2", "batch"), "cpu"),
    ),
    Mutant(
        "blend: dx about zero where a cell has several channels",
        gradients,
        "of_cell = n[g], near[g], rest[g], of_var[g], high, twice",
        "of_cell = n[g], 0.0, rest[g], of_var[g], high, twice",
        lambda: cpu.test_running_statistics_far_from_x(("batch", "group:2"), False),
    ),
    Mutant(
        "rows: gradient without the share of the mean",
        row_gradients,
        "-total * rstd * of_all if",
        "0.0 if",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "rows: gradient with half the share of the variance",
        row_gradients,
        "(rstd * rstd) * of_all",
        "(rstd * rstd) * (0.5 * of_all)",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "gradient of several channels without the share of the mean",
        gradients,
        "tilt, dmean * of_all + ",
        "tilt, ",
        compiled_plain("group, parts"),
    ),
    Mutant(
        "gradient of several channels with half the share of the variance",
        gradients,
        "twice * dvar",
        "dvar",
        compiled_plain("group, parts"),
    ),
    Mutant(
        "gradient of the weight not divided by std, compiled",
        gradients,
        "(product - low * total) * rstd, total",
        "(product - low * total), total",
        compiled_plain("instance, tracked"),
    ),
    Mutant(
        "rows: gradient of the weight not divided by std",
        row_gradients,
        "g * (u - low)",
        "dy * (u - low)",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "rows, by fours: the fourth left out of the gradients of weight and bias",
        row_gradients,
        "(((a + b) + (c + d)) for a",
        "(((a + b) + c) for a",
        compiled_plain("layer, many rows"),
    ),
    Mutant(
        "rows, by fours: rows of other tiles take part",
        row_gradients,
        "kept + 3 * (r + j * tiles)",
        "kept + 3 * (r + j)",
        compiled_plain("group, short planes"),
    ),
    Mutant(
        "gradient of the logits dropped, compiled",
        gradients,
        "weights[i] * (sums[i] - common)",
        "0.0",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "gradient of the logits without what the softmax has in common",
        gradients,
        "weights[i] * (sums[i] - common)",
        "weights[i] * sums[i]",
        compiled_plain("switch, parts"),
    ),
    Mutant(
        "a row of a piece that is one run left out",
        columns,
        "moments_of(x, start, start + rows * values)",
        "moments_of(x, start, start + (rows - 1) * values)",
        compiled_plain("layer, pieces, last"),
    ),
    Mutant(
        "a piece taken for one run of a cell, which has some of its channels",
        layout.Layout._run,
        "cells.groups == 1 and ",
        "",
        compiled_plain("group, last"),
    ),
    Mutant(
        "gradient of y read as if it lay as x does",
        steps.Compiled.arranged,
        "dy.stride() != x.stride() or ",
        "",
        lambda: cpu.test_a_gradient_that_lies_otherwise_in_memory("batch, pieces", "channels last"),
    ),
    Mutant(
        "gradient of y read as if it lay as the first one did",
        steps._alike,
        "check = alike(there).check",
        "check = lambda *others: True",
        lambda: known.test_a_gradient_that_lies_otherwise_than_those_before("group", "transposed"),
    ),
    Mutant(
        "a slice of x read as if it were whole",
        steps.Compiled.forward,
        "if self.copies:",
        "if False:",
        lambda: promise.test_dtypes_and_layouts("batch 2d", "sliced", torch.float32, "auto"),
    ),
    # Running statistics
    Mutant(
        "biased running variance, compiled",
        blend,
        "(cell[0] - 1.0 if cell[0] > 2.0 else 1.0)",
        "cell[0]",
        compiled_plain("batch, last"),
    ),
    Mutant(
        "biased running variance of several blocks, compiled",
        blend,
        " * (n / (n - 1.0 if n > 2.0 else 1.0))",
        "",
        compiled_plain("ghost, tail"),
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
        "if not abs(moved[c]) < largest:",
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
    # Threads
    Mutant(
        "pieces as many as threads",
        layout.Layout._lay_units,
        "-(-positions // ",
        "-(-positions * torch.get_num_threads() // ",
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
