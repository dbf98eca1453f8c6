"""What the documents, docstrings and comments name is there: paths, sections of the design, ADRs, make targets, and
the functions and fields of this package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLDERS = (
    "benchmarks",
    "contracts",
    "docs",
    "examples",
    "interop",
    "p2pdfl",
    "packaging",
    "scenarios",
    "studies",
    "tests",
)
"""What is in the repository; a run, an environment and node_modules lie beside it."""

_FOREIGN = {"encoding", "host.connect", "host.close", "hypothesis", "libp2p", "petlib", "torch"}
"""First names of what others wrote, where the text says so."""

_NOT_OURS = re.compile(r"NAME|NNNN|\*|<|path/to|no/such|folder/|^own\.py$|^interop/node_modules|^p2pdfl/[\w/-]+/\d/?$")
"""Examples, what make makes, and domain tags as `p2pdfl/draw/1`."""
_ROOTED = re.compile(r"(?<![\w./<>-])(?:" + "|".join(FOLDERS) + r")/[\w./*<>-]*\w/?")
_FILE = re.compile(r"(?<![\w./<>*-])(?:[\w-]+/)*[\w-]+\.(?:py|md|mjs)\b")
_LINK = re.compile(r"\]\(([^)#]+)\)")
_DOTTED = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`")
_SAID = re.compile(r'"""((?:[^"]|"(?!""))*)"""|(?:^|  )# ?(.*(?:\n *#.*)*)', re.MULTILINE)
_STEP = re.compile(r"`([\w/]+\.py):([\w.]+)`")
_DESIGN = re.compile(r'DESIGN (\d+(?:\.\d+)?(?:(?:-|, )\d+(?:\.\d+)?)*)((?:,? "[^"]+")*)')
_SECTION = re.compile(r"(design|protocol|wire)\.md\)?`?,? (?:section )?(\d+)\b")
_ADR = re.compile(r"(?:ADRs? |adr/)(\d+)")
_MAKE = re.compile(r"(?:`|^ {4}|&& )make ([a-z][a-z-]*)", re.MULTILINE)
_COMMAND = re.compile(r"(?:`|bin/|^ {4})p2pdfl ([a-z]+)", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_MODULE = re.compile(r"(?:\bimport |\bfrom |-m |[\"'])(p2pdfl(?:\.\w+)+)(?![\w/])")
_SCENARIO = re.compile(r"make (scenario|study) NAME=(\w+)")


@cache
def files() -> tuple[Path, ...]:
    """Relative to the root."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    relative = [path.relative_to(ROOT) for path in found]
    return tuple(sorted(path for path in relative if not {"node_modules", "__pycache__"} & set(path.parts)))


def documents() -> list[Path]:
    return [path for path in files() if path.suffix == ".md"]


def modules() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@cache
def prose(path: Path) -> str:
    """What a file says to its reader: of Python the comments and docstrings, of others all; one line per paragraph."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        said = (found.group(1) or re.sub(r"\n *#", "\n", found.group(2)) for found in _SAID.finditer(text))
        text = "\n\n".join(re.sub(r"\n +", "\n", words) for words in said)
    elif path.suffix != ".md":
        text = re.sub(r"^ *(#|//) ?", "", text, flags=re.MULTILINE)
    return re.sub(r"(?<!\n)\n(?!\n|    )", " ", text)


def readable() -> list[Path]:
    kinds = {".md", ".py", ".mjs", ".sh", ".vy", ".toml"}
    return [path for path in files() if path.suffix in kinds or path.name == "Makefile"]


# --- paths -----------------------------------------------------------------------------------------------------


def is_there(name: str, beside: Path) -> bool:
    """Whether some file has that name, or ends in it; `docs/adr/0014` is the file that begins so."""
    name = name.rstrip("/.")
    if any((ROOT / folder / name).exists() for folder in (beside.parent, "", "p2pdfl")):
        return True
    if any(path.as_posix().endswith("/" + name) for path in files()):
        return True
    return re.fullmatch(r"docs/adr/\d{4}", name) is not None and any((ROOT / "docs/adr").glob(name[-4:] + "-*.md"))


def test_every_path_that_a_document_or_a_docstring_names_is_there() -> None:
    missing = [
        f"{path}: {name}"
        for path in readable()
        for name in {
            *_ROOTED.findall(prose(path)),
            *(_FILE.findall(prose(path)) if path.suffix in {".md", ".py"} else ()),
        }
        if not _NOT_OURS.search(name) and not is_there(name, path)
    ]
    assert not missing, "\n".join(missing)


def test_every_link_between_documents_leads_somewhere() -> None:
    missing = [
        f"{path}: {link}"
        for path in documents()
        for link in _LINK.findall(prose(path))
        if "://" not in link and not (ROOT / path.parent / link).exists()
    ]
    assert not missing, "\n".join(missing)


# --- the design, and what deviates from it ------------------------------------------------------------------------


@cache
def sections() -> dict[str, str]:
    """Numbers of the design's sections, and of the points within them -> text."""
    found: dict[str, str] = {}
    parts = re.split(r"^## (\d+)\. ", (ROOT / "docs/design.md").read_text(), flags=re.MULTILINE)
    for number, text in zip(parts[1::2], parts[2::2], strict=True):
        found[number] = text
        points = re.split(r"^(\d+)\. ", text, flags=re.MULTILINE)
        for point, said in zip(points[1::2], points[2::2], strict=True):
            found[f"{number}.{point}"] = said
    return found


def test_every_section_of_the_design_that_is_named_is_there() -> None:
    missing: list[str] = []
    for path in readable():
        for numbers, quoted in _DESIGN.findall(prose(path)):
            named = re.split(r"-|, ", numbers)
            missing += [f"{path}: DESIGN {number}" for number in named if number not in sections()]
            headings = re.findall(r'"([^"]+)"', quoted)
            said = sections().get(named[-1], "")
            missing += [f"{path}: DESIGN {named[-1]} {title!r}" for title in headings if f"**{title}" not in said]
    assert not missing, "\n".join(missing)


def test_every_section_of_another_document_that_is_named_is_there() -> None:
    missing = [
        f"{path}: {document}.md {number}"
        for path in readable()
        for document, number in _SECTION.findall(prose(path))
        if f"\n## {number}. " not in (ROOT / f"docs/{document}.md").read_text()
    ]
    assert not missing, "\n".join(missing)


@cache
def decisions() -> dict[int, Path]:
    return {int(path.name[:4]): path for path in documents() if re.match(r"docs/adr/\d{4}-", path.as_posix())}


def test_every_decision_that_is_named_is_there() -> None:
    missing = [
        f"{path}: ADR {number}"
        for path in readable()
        for number in _ADR.findall(prose(path))
        if int(number) not in decisions()
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("number", sorted(decisions()))
def test_the_index_has_each_decision_with_its_title_and_status(number: int) -> None:
    path = decisions()[number]
    title, _, rest = (ROOT / path).read_text().partition("\n")
    status = re.search(r"^Status: (.+)$", rest, re.MULTILINE)
    assert title.startswith(f"# {number}. ")
    assert status is not None
    index = (ROOT / "docs/adr/README.md").read_text()
    row = next(line for line in index.splitlines() if line.startswith(f"| {number} | [") and f"({path.name}) |" in line)
    assert title.removeprefix(f"# {number}. ") in row
    assert status[1].split(" ")[0].rstrip(".,;") in row


# --- names in the code -----------------------------------------------------------------------------------------


@cache
def names(path: Path) -> frozenset[str]:
    """What a module defines, and what its classes do: as Class.name, and by the name alone, as a text says
    `task.audit_fraction` of a field of Task."""
    found: set[str] = set()
    for node in tree(path).body:
        for name in _defined(node):
            found.add(name)
        if isinstance(node, ast.ClassDef):
            for name in (name for inner in ast.walk(node) for name in _defined(inner)):
                found |= {name, f"{node.name}.{name}"}
    return frozenset(found)


def _defined(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ImportFrom(names=imported):
            yield from (alias.asname or alias.name for alias in imported)
        case ast.Assign(targets=targets):
            for target in targets:
                yield from _target(target)
        case ast.AnnAssign(target=target):
            yield from _target(target)


def _target(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Name(id=name):
            yield name
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            yield name
        case ast.Tuple(elts=elements):
            for element in elements:
                yield from _target(element)


@cache
def stems() -> dict[str, list[Path]]:
    """`run`, `protocol.run`, `p2pdfl.protocol.run` -> files."""
    found: dict[str, list[Path]] = {}
    for path in modules():
        parts = path.with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), []).append(path)
            if start + 1 < len(parts):  # what a package's modules define is the package's: `chain.ChainClient`
                found.setdefault(".".join(parts[start:-1]), []).append(path)
    return found


def is_ours(dotted: str) -> bool:
    """Whether a text that names it means a module or a class of ours, or one that is gone."""
    first, *_, last = dotted.split(".")
    if first[0].isupper():
        return True
    return first in stems() or last[0].isupper()


@cache
def homes() -> dict[str, list[Path]]:
    """Class -> the modules that define one of that name."""
    found: dict[str, list[Path]] = {}
    for path in modules():
        for name in re.findall(r"^class (\w+)", (ROOT / path).read_text(), re.MULTILINE):
            found.setdefault(name, []).append(path)
    return found


def is_known(dotted: str) -> bool:
    """`envelope.kind` may be the module's, or a field of an Envelope."""
    parts = dotted.split(".")
    owner = parts[0][0].upper() + parts[0][1:]
    if dotted in stems() or any(f"{owner}.{parts[1]}" in names(path) for path in homes().get(owner, ())):
        return True
    return any(
        ".".join(parts[cut:]) in names(path)
        for cut in range(1, len(parts))
        for path in stems().get(".".join(parts[:cut]), ())
    )


def test_every_name_of_ours_that_a_document_or_a_docstring_names_is_defined() -> None:
    missing = [
        f"{path}: {dotted}"
        for path in readable()
        for dotted in _DOTTED.findall(prose(path))
        if is_ours(dotted)
        and not {dotted, dotted.split(".")[0]} & _FOREIGN
        and not re.search(r"\.(py|md|mjs|csv|jsonl?|png|toml|html|svg|sqlite|safetensors)$", dotted)
        and not is_known(dotted)
    ]
    assert not missing, "\n".join(missing)


def test_every_module_that_a_programs_text_or_a_command_names_is_there() -> None:
    """Also in strings that become programs, which neither imports nor mypy see."""
    kinds = {".py", ".sh", ".mjs", ".toml"}
    missing = [
        f"{path}: {dotted}"
        for path in files()
        if path.suffix in kinds or path.name == "Makefile"
        for dotted in set(_MODULE.findall((ROOT / path).read_text()))
        if not is_known(dotted)
    ]
    assert not missing, "\n".join(missing)


# --- the traces through the house --------------------------------------------------------------------------------


def test_the_architecture_has_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    headings = " ".join(re.findall(r"^### (.+):", text, re.MULTILINE)).replace(",", " ").split()
    rooms = {path.parts[1].removesuffix(".py") for path in modules() if path.parts[0] == "p2pdfl"} - {"__init__"}
    assert rooms == set(headings)
    picture = text.split("```")[1]
    assert rooms <= set(picture.split())


@cache
def traces() -> dict[str, list[tuple[str, str]]]:
    """Title -> (module, function) step by step."""
    parts = re.split(r"^### (.+)$", (ROOT / "ARCHITECTURE.md").read_text(), flags=re.MULTILINE)
    found = {title: _STEP.findall(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {title: steps for title, steps in found.items() if steps}


def test_every_function_of_a_trace_is_where_the_trace_says() -> None:
    assert len(traces()) == 3
    missing = [
        f"{module}:{name}"
        for module, name in _STEP.findall((ROOT / "ARCHITECTURE.md").read_text())
        if not (ROOT / "p2pdfl" / module).exists() or name not in names(Path("p2pdfl") / module)
    ]
    assert not missing, "\n".join(missing)


def test_no_trace_enters_a_module_more_than_three_times() -> None:
    for title, steps in traces().items():
        entered = [
            module for (before, _), (module, _) in zip([("", ""), *steps], steps, strict=False) if module != before
        ]
        often = {module for module in entered if entered.count(module) > 3}
        assert not often, (title, often)


# --- commands --------------------------------------------------------------------------------------------------


def test_every_make_target_that_a_document_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = [
        f"{path}: make {name}" for path in documents() for name in _MAKE.findall(prose(path)) if name not in targets
    ]
    assert not missing, "\n".join(missing)


def test_every_scenario_and_study_that_a_document_names_is_there() -> None:
    folders = {"scenario": "scenarios", "study": "studies"}
    missing = [
        f"{path}: {kind} {name}"
        for path in documents()
        for kind, name in _SCENARIO.findall(prose(path))
        if name.islower() and not (ROOT / folders[kind] / f"{name}.toml").exists() and name != "path"
    ]
    assert not missing, "\n".join(missing)


def test_every_command_and_flag_that_a_document_names_is_there() -> None:
    parsers = [ROOT / "p2pdfl" / name for name in ("cli.py", "peer.py", "sim/__main__.py")]
    source = "".join(path.read_text() for path in parsers)
    commands = set(re.findall(r'add_parser\(\s*"([a-z]+)"', source))
    ours = [path for path in documents() if "adr" not in path.parts]  # those name other programs' flags
    missing = [
        f"{path}: p2pdfl {name}" for path in ours for name in _COMMAND.findall(prose(path)) if name not in commands
    ]
    missing += [f"{path}: {flag}" for path in ours for flag in _FLAG.findall(prose(path)) if f'"{flag}"' not in source]
    assert not missing, "\n".join(missing)
