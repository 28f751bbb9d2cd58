"""The documents: their snippets are doctests, and here is what a doctest does not see.

Examples for the readers of the source articles run and would fail if they were wrong; every fenced
block is a doctest or a command that exists; links lead somewhere; the Chinese documents show the
same code as the English ones.
"""

import re
import runpy
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import normalform as nf
from normalform import cli

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples" / "articles").glob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")])
TRANSLATED = [path for path in DOCUMENTS if path.name.endswith(".zh.md")]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:normalform|make|python) [^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
JUDGES = {
    "batch_norm": "batch_norm",
    "group_norm": "group_norm",
    "instance_norm": "instance_norm",
    "layer_norm": "norm",
    "switchable_norm": "switch_norm",
}


def named(path: Path) -> str:
    return path.name


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCED.findall(path.read_text(encoding="utf-8"))


def commands(path: Path) -> list[list[str]]:
    """Every command that the document gives, in blocks and inside its text."""
    text = path.read_text(encoding="utf-8")
    shown = [block for language, block in blocks(path) if not language]
    lines = "".join(shown).splitlines()
    found = [*lines, *INLINE.findall(FENCED.sub("", text))]
    return [words for line in found if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_example_of_an_article(path: Path, capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(path), run_name="__main__")
    assert "the reference" in capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_example_of_an_article_sees_an_error(path: Path, monkeypatch: pytest.MonkeyPatch):
    judge = JUDGES[path.stem]
    monkeypatch.setattr(nf.reference, judge, unbiased(getattr(nf.reference, judge)))
    with pytest.raises(AssertionError):
        runpy.run_path(str(path), run_name="__main__")


def unbiased(exact: Callable[..., Any]) -> Callable[..., Any]:
    """The judge as if the variance of 25 values were divided by 24: the articles' own slip."""

    def planted(*arguments: Any, **options: Any) -> Any:
        result = exact(*arguments, **options)
        return replace(result, y=result.y * (24 / 25) ** 0.5)

    return planted


def test_there_are_documents_and_examples():
    assert [path.stem for path in EXAMPLES] == sorted(JUDGES)
    names = {path.name for path in DOCUMENTS}
    assert {"README.md", "README.zh.md", "corrections.md", "corrections.zh.md"} <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_document_is_run_as_a_doctest(path: Path, pytestconfig: pytest.Config):
    paths = [ROOT / each for each in pytestconfig.getini("testpaths")]
    assert path in paths or path.parent in paths


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_snippet_is_a_doctest_or_a_command(path: Path):
    for language, block in blocks(path):
        assert language in ("", "python"), block
        if language:
            assert block.startswith(">>> "), block
            # The blank line before the fence is where a doctest's last output ends.
            assert block.endswith("\n\n"), block


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_command_exists(path: Path):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *arguments in commands(path):
        if program == "make":
            assert arguments[0] in targets
        elif program == "normalform":
            cli._parser().parse_args(arguments)
        elif program == "python":
            assert (ROOT / arguments[-1]).is_file(), arguments
        else:
            assert (program, arguments[0]) == ("pip", "install")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_inside_leads_somewhere(path: Path):
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "http://", "#")):
            assert (path.parent / link.split("#")[0]).exists(), link


@pytest.mark.parametrize("path", TRANSLATED, ids=named)
def test_chinese_documents_show_the_same_code(path: Path):
    english = path.with_name(path.name.replace(".zh.md", ".md"))
    assert [block for language, block in blocks(path) if language] == [
        block for language, block in blocks(english) if language
    ]


@pytest.mark.parametrize("path", TRANSLATED, ids=named)
def test_chinese_documents_have_the_same_figures_in_tables(path: Path):
    english = path.with_name(path.name.replace(".zh.md", ".md"))
    assert tables(path) == tables(english)


def tables(path: Path) -> list[list[str]]:
    """The numbers in each row of the document's tables."""
    rows = re.findall(r"^\|.*", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.findall(r"\d[\d.,]*", row) for row in rows]


@pytest.mark.parametrize("name", ["corrections.md", "corrections.zh.md"])
def test_faults_are_numbered_and_all_in_reach(name: str):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^\*\*(\d+)\. ", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 30
    for row in re.findall(r"_norm\.py\) \| ([\d, ]+) \|$", text, re.MULTILINE):
        assert {int(number) for number in row.split(",")} <= set(numbers)
