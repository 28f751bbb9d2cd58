"""The command line: ``normalform explain``, ``compare``, ``check``, ``bench``, ``diagnose``, ..."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status.

    0: done. 1: ``check`` or ``diagnose`` found something. 2: it could not be done, and one line
    says why. 130: interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    options.typed = shlex.join(["normalform", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"normalform {options.command}: {_one_line(error)}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line; ``--help`` has the rest."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="normalform",
        description="Every normalization from one idea: what shares a mean and a variance.",
    )
    parser.add_argument("--version", action="version", version=version("normalform"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_explain(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_check(commands)
    _add_bench(commands)
    _add_diagnose(commands)
    return parser


def _add_explain(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "explain",
        help="show which elements share a mean in a norm, or make a page of all norms",
        description="Show a norm: which elements share a mean and a variance, its parameters, the "
        "kernel that runs and why, as a pile of books, and with numbers. --all makes a page of "
        "every norm that opens without network, and runs what is said to be equal.",
    )
    parser.add_argument(
        "name", nargs="?", help='batch, group:2, switch, ... or notation, as "n (g [c]) [s]"'
    )
    parser.add_argument("--shape", type=_numbers, help="of the tensor, as 2,4,3,3")
    parser.add_argument("--groups", type=int, help="groups of channels, as 2")
    parser.add_argument("--size", type=_sizes, help="sizes by letter, as n=2 or b=2,g=4")
    parser.add_argument("--values", action="store_true", help="the numbers, step by step")
    parser.add_argument("--all", action="store_true", help="a page of all norms: runs/gallery.html")
    parser.add_argument(
        "--out", type=Path, help="draw to this .svg or .png; with --all also an .html"
    )
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    from normalform.lab.explain import Options, run

    return run(Options(**_chosen(options)))


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="train small networks, or your own, with each norm and write a report",
        description="Train two small networks, or one of your own, with each norm on real images, "
        "at several normalization batch sizes, and write a table, plots and an HTML report. An "
        "interrupted comparison goes on where it stopped. With --experiment: try published claims "
        "about norms by the experiments that ship.",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="your network, as package.module:build: a function of norm_layer, or a model or a "
        "function without arguments that makes one, whose norms are exchanged",
    )
    parser.add_argument(
        "--metric", help="for your network: error (labels), miou (maps of labels), mse (numbers)"
    )
    parser.add_argument(
        "--experiment",
        type=_words,
        metavar="NAME",
        help="one of the experiments that ship, several (a,b), all, or list to see which there are",
    )
    parser.add_argument(
        "--data",
        help="fashion (2,000 + 2,000 images that come with the package; the default), digits "
        "(scikit-learn's), a .npz file, a folder with a folder of pictures for each class, or "
        "torchvision:CIFAR10 (or MNIST, SVHN, ...; needs torchvision), which lies or is downloaded "
        "in $TORCH_HOME/data (~/.cache/torch/data), or in FOLDER by torchvision:CIFAR10:FOLDER; "
        "also for those experiments that have such a setting",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", default=None, help="a look in half a minute")
    size.add_argument(
        "--full",
        action="store_true",
        default=None,
        help="experiments as large as on GPUs and whole data sets",
    )
    parser.add_argument("--seeds", type=int, help="trainings of each arm")
    parser.add_argument("--epochs", type=int, help="passes over the training images")
    parser.add_argument("--nbs", type=_numbers, help="normalization batch sizes, as 32,8,2")
    parser.add_argument("--norms", type=_words, help="as none,batch,layer,instance,group:4,switch")
    parser.add_argument(
        "--lr",
        type=_rates,
        help="learning rate at a batch of 32; of several, as 0.2,0.05,0.01, each run takes the "
        "best on a fifth of the training images held out",
    )
    parser.add_argument("--name", help="of the run's folder")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the folder is made")
    parser.add_argument("--workers", type=int, help="trainings side by side")
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="auto (the default: cuda where there is one, else cpu), cpu, cuda, cuda:1 or mps",
    )
    parser.add_argument(
        "--precision",
        metavar="TYPE",
        help="float32 (the default), bfloat16, or float16 on cuda: mixed, by torch.autocast",
    )
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    chosen = _chosen(options)
    if "experiment" in chosen:
        return _experiment(chosen, options.typed)
    if "full" in chosen:
        raise ValueError("--full is for the experiments: --experiment all")
    from normalform.lab.plan import Options

    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun
        from normalform.lab.distributed import compare
    else:
        from normalform.lab.comparison import compare
    compare(Options(**chosen, command=options.typed))
    return 0


def _experiment(chosen: dict[str, Any], typed: str) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("--experiment does not go with torchrun: it has workers of its own")
    from normalform.lab.experiments import EXPERIMENTS

    if "list" in chosen["experiment"]:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:20}{experiment.title}")
        return 0
    from normalform.lab.experiments.command import run
    from normalform.lab.experiments.plan import Options

    for name in chosen.keys() - {field.name for field in fields(Options)}:
        raise ValueError(f"--{name} does not go with --experiment, whose settings are its own")
    run(Options(**chosen, command=typed))
    return 0


def _add_report(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "report",
        help="one page of several comparisons and experiments",
        description="Make one HTML page, which opens without network, of the folders that compare "
        "has written.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="as runs/*")
    parser.add_argument(
        "--out",
        type=Path,
        help="the page to write; by default report.html beside the folders, or here where they do "
        "not lie side by side; of one folder, the report in it",
    )
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from normalform.lab.report import merge

    print(f"Report: {merge(options.folders, options.out)}")
    return 0


def _add_check(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "check",
        help="measure every norm, and PyTorch's, against a float64 reference",
        description="Measure the largest error of every norm and of PyTorch's own layer against a "
        "float64 reference, in units of the promise, and check the tensors printed in the source "
        "articles. The exit status is 1 if anything of ours is outside.",
    )
    parser.add_argument("--input", type=Path, help="your own data: .npy, .npz, .pt or a picture")
    parser.add_argument("--key", help="the array of a .npz or .pt file to take")
    parser.add_argument("--norms", type=_words, help="as batch,group,switch; all by default")
    parser.add_argument("--dtypes", type=_words, help="as float32,bfloat16; all by default")
    parser.add_argument("--kernel", help="the kernel our layers run: auto, cpu, eager, two_float")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="under torch.compile every norm and type, not only some; takes a minute more",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument(
        "--device", help="where the layers run: cpu (the default), auto, cuda, cuda:1 or mps"
    )
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from normalform.lab.check import Options, run

    return run(Options(**_chosen(options)))


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="time every norm, and whole networks, beside PyTorch's",
        description="Time every norm beside PyTorch's layer and beside a copy of its input, from "
        "256 to 26 million elements, and small networks before and after nf.convert. Everything "
        "is measured in turns, and kept as a table (results.csv) and pictures.",
    )
    parser.add_argument("--quick", action="store_true", help="a look in a minute")
    parser.add_argument("--norms", type=_words, help="as batch,instance,switch, or none")
    parser.add_argument("--models", type=_words, help="as unet2d,transformer, or none")
    parser.add_argument(
        "--no-models", dest="models", action="store_const", const=("none",), help="layers alone"
    )
    parser.add_argument("--shape", type=_numbers, help="one input for all norms, as 8,64,56,56")
    parser.add_argument("--layout", help="contiguous or channels_last; both by default")
    parser.add_argument("--max-elements", type=int, help="the largest tensor of the sweep")
    parser.add_argument("--dtype", help="as bfloat16; float32 by default")
    parser.add_argument("--kernel", help="the kernel our layers run; auto by default")
    parser.add_argument("--threads", type=int, help="that compute; as PyTorch by default")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="let torch.compile of PyTorch's layer compete; compiling takes most of the time",
    )
    parser.add_argument("--seconds", type=float, help="time for each case, more is steadier")
    parser.add_argument("--name", help="of the folder: bench, or bench-part of a part")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the folder is made")
    parser.add_argument("--show", type=Path, metavar="FOLDER", help="show an earlier one again")
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from normalform.lab.bench import Options, bench

    bench(Options(**_chosen(options), command=options.typed))
    return 0


def _add_diagnose(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="say what is wrong with the norms of a model, and what mends it",
        description="Say what is wrong with the norms of a model: from the model alone, and with "
        "--data and --loss how much of the loss in evaluation comes from which norm's running "
        "statistics. Remedies are tried on a copy. The exit status is 1 if anything is worse than "
        "a note.",
    )
    parser.add_argument(
        "source",
        metavar="MODEL",
        help="package.module:name, a model or a function without arguments that makes one; or a "
        "file of weights (.pt, .pth, .ckpt), of which only tensors are read",
    )
    parser.add_argument(
        "--data",
        help="package.module:name, a loader or a function that makes one; or a .npz with x and y",
    )
    parser.add_argument("--loss", help="package.module:name, or as cross_entropy, mse_loss")
    parser.add_argument("--optimizer", help="package.module:name, a function of the model")
    parser.add_argument("--batches", type=int, help="how many of them are looked at; 4")
    parser.add_argument("--batch-size", type=int, help="of the batches of a file; 32")
    parser.add_argument("--json", type=Path, help="write all of it here")
    parser.add_argument("--html", type=Path, help="write a page with plots here")
    parser.add_argument(
        "--run-pickled-code",
        action="store_true",
        help="read a file that is more than tensors, which runs code that is in it",
    )
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> int:
    from normalform.lab.diagnosing import Options, run

    return run(Options(**_chosen(options)))


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; what was not keeps the default of the command's own options."""
    given = vars(options).items()
    return {k: v for k, v in given if v is not None and k not in ("command", "run", "typed")}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers, as 32,8,2"
        ) from None


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of learning rates, as 0.2,0.05"
        ) from None


def _sizes(text: str) -> dict[str, int]:
    try:
        pairs = (word.split("=") for word in text.split(","))
        return {letter.strip(): int(number) for letter, number in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes, as n=2,g=4") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
