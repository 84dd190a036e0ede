"""The rules of the code, as tests: who may import whom, what may be imported where, and how light
starting is."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import chuk_lib
from chuk_cli import lazy
from chuk_lib import __version__
from tests.conftest import ROOT, RunChuk, chuk_environment
from tests.walls import Edges, cycles, reached, rooms

PACKAGES = ("chuk", "chuk_cli", "chuk_lib")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
HEAVY = {
    "mlx",
    "mlx_lm",
    "transformers",
    "huggingface_hub",
    "numpy",
    "tokenizers",
    "pydantic",
    "pyarrow",
    "jinja2",
}
SLOW = {"mlx_lm", "transformers", "huggingface_hub", "pyarrow"}

LIGHT = [
    "errors.py",
    "events.py",
    "config/",
    "training/config.py",
    "training/preference/config.py",
    "training/online/config.py",
    "training/online/grpo_config.py",
    "training/online/ppo_config.py",
    "training/recipes.py",
    "utils/best.py",
    "utils/text.py",
    "utils/torch_apart.py",
    "models/config.py",
    "inference/config.py",
    "experts/config.py",
    "distributed/config.py",
    "serving/settings.py",
    "__init__.py",
]
"""Parts of the library that the command line imports for defaults and help: standard library only.
"""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported module of a file, and whether it is imported whenever the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node) for branch in ast.walk(tree) if _is_for_types(branch) for node in ast.walk(branch)
    }
    inside = {
        id(node)
        for function in ast.walk(tree)
        if _is_function(function)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, id(node) not in inside


def _is_for_types(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def packages(path: Path, top_only: bool = False) -> set[str]:
    return {module.split(".")[0] for module, at_top in imports(path) if at_top or not top_only}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_relative_imports_are_not_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
    ]


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if name_of(path).startswith("chuk_lib/")], ids=name_of
)
def test_library_knows_neither_the_command_line_nor_the_terminal(path: Path) -> None:
    assert not packages(path) & {"chuk_cli", "typer", "rich", "click"}
    assert not packages(path, top_only=True) & SLOW
    calls = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]
    assert not [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in ("print", "input")
    ]


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if name_of(path).startswith("chuk_cli/")], ids=name_of
)
def test_command_line_imports_heavy_parts_inside_functions(path: Path) -> None:
    assert not packages(path, top_only=True) & (HEAVY | {"yaml", "click"})
    assert "click" not in packages(path)
    lib = {module for module, at_top in imports(path) if at_top and module.startswith("chuk_lib.")}
    light = {f"chuk_lib.{name}".replace("/", ".").removesuffix(".py").rstrip(".") for name in LIGHT}
    assert not {
        module
        for module in lib
        if not any(module == item or module.startswith(item + ".") for item in light)
    }


WALLS = {
    "data.tokenizers": ("data", "models", "inference", "rewards", "training"),
    "data": ("models", "inference", "rewards", "runs", "training"),
    "models": ("data", "inference", "rewards", "runs", "training"),
    "inference": ("data", "rewards", "runs", "training"),
    "rewards": ("runs", "training"),
    "config": ("data.tokenizers", "data", "models", "inference", "rewards", "runs", "training"),
    "runtime": ("config", "data", "models", "inference", "rewards", "runs", "training"),
    "runs": ("data", "models", "inference", "rewards", "training"),
    "training": ("distributed", "env", "experts", "parity", "serving"),
    "serving": ("data", "distributed", "rewards", "runs", "training"),
    "env": ("distributed",),
    "distributed": ("env", "serving"),
}
"""Rooms that a room does not know, not even through others. No room knows the command line."""


def broken_walls(edges: Edges) -> list[str]:
    """Every wall that is broken, with the imports that lead through it."""
    found = []
    for room in edges:
        ways = reached(edges, room)
        closed = {*WALLS.get(room, ()), *(() if room == "chuk_cli" else ("chuk_cli",))}
        found += [
            f"{room} knows {other}: {', '.join(ways[other])}"
            for other in sorted(closed & set(ways))
        ]
    return found


def test_rooms_know_only_whom_they_may() -> None:
    edges = rooms(ROOT)
    assert set(WALLS) <= set(edges)
    assert not broken_walls(edges)
    assert not cycles(edges)


def planted(root: Path, **modules: str) -> Edges:
    """The rooms of a tree with these modules, each by its path and its text."""
    for name, text in modules.items():
        path = root.joinpath("chuk_lib", *name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return rooms(root)


@pytest.mark.parametrize(
    "way_back",
    [
        "from chuk_lib.data.turns import x",
        "def f():\n    from chuk_lib.data import turns",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import chuk_lib.data.turns",
        "LOAD = 'chuk_lib.data.turns:load'",
        "import importlib\ndef f(name):\n    importlib.import_module(f'chuk_lib.data.{name}')",
    ],
)
def test_a_cycle_through_packages_is_found_however_it_is_imported(
    tmp_path: Path, way_back: str
) -> None:
    files = {
        "data__turns": "from chuk_lib.rewards.kinds import y",
        "rewards__kinds": "import chuk_lib.inference.text",
    }
    edges = planted(tmp_path, **files, inference__text="x = 1")
    assert not cycles(edges)
    assert [line.partition(":")[0] for line in broken_walls(edges)] == [
        "data knows inference",
        "data knows rewards",
    ]
    edges = planted(tmp_path, **files, inference__text=way_back)
    assert set(cycles(edges)) == {"data", "rewards", "inference"}
    way = cycles(edges)["data"]
    assert way[:2] == [
        "chuk_lib.data.turns imports chuk_lib.rewards.kinds",
        "chuk_lib.rewards.kinds imports chuk_lib.inference.text",
    ]
    assert way[2].startswith("chuk_lib.inference.text imports chuk_lib.data")


def classes(root: Path) -> dict[str, list[str]]:
    """The public classes of the project by name, each with the files that define one."""
    found: dict[str, list[str]] = {}
    for path in sorted(path for top in PACKAGES for path in (root / top).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(path.relative_to(root).as_posix())
    return found


def test_no_two_public_classes_share_a_name(tmp_path: Path) -> None:
    """One word means one thing."""
    twins = {name: files for name, files in classes(ROOT).items() if len(files) > 1}
    assert not twins
    planted(
        tmp_path,
        data__pairs="class Pair:\n    x = 1",
        training__pairs="class Pair(tuple):\n    y = 2\nPairs = 1",
    )
    assert classes(tmp_path) == {"Pair": ["chuk_lib/data/pairs.py", "chuk_lib/training/pairs.py"]}


def test_the_library_does_not_use_its_own_front_door() -> None:
    """`chuk_lib` offers names of many rooms: whoever imports them there would go through the
    walls."""
    for path in (ROOT / "chuk_lib").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        front = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "chuk_lib"
        ]
        assert not {alias.name for node in front for alias in node.names} & set(
            chuk_lib._EXPORTS
        ), name_of(path)


def test_ray_is_the_business_of_one_room() -> None:
    """And there it is imported when something runs on it."""
    knowing = {path for path in SOURCES if "ray" in packages(path)}
    assert knowing == {ROOT / "chuk_lib" / "distributed" / "cluster.py"}
    assert not [path for path in knowing if "ray" in packages(path, top_only=True)]


def test_errors_and_events_need_the_standard_library_only() -> None:
    for name in ("errors.py", "events.py"):
        assert packages(ROOT / "chuk_lib" / name) <= set(sys.stdlib_module_names) | {"chuk_lib"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_size_and_docstrings(path: Path) -> None:
    tree = ast.parse(text := path.read_text(encoding="utf-8"))
    assert len(text.splitlines()) <= 500
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    # A command's parameters are its options, which are counted where they are shown: in its help.
    bodies = {f.name: (f.end_lineno or f.lineno) - f.body[0].lineno for f in functions}
    assert not [name for name, lines in bodies.items() if lines >= 60]
    if text.strip():
        assert ast.get_docstring(tree), "a module says what it is for"
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not [
        node.name
        for node in public
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_broad_excepts_say_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    broad = [
        line
        for line in lines
        if line.strip().startswith(("except:", "except Exception", "except BaseException"))
    ]
    assert not [line for line in broad if "#" not in line and "BaseException as error" not in line]


def test_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__


def commands() -> list[list[str]]:
    """Every command as the words to type, with groups and the groups in them."""
    found = [[name] for name in lazy.GROUPS]
    for words in found:  # grows while it is walked
        command = lazy.load(words[0]) if len(words) == 1 else lazy.find(words)
        found += [[*words, inner] for inner in getattr(command, "commands", {})]
    return found


def help_of(words: list[str]) -> str:
    return str(lazy.find(words).help or "")


def test_every_entry_of_the_table_resolves() -> None:
    for name, group in lazy.GROUPS.items():
        assert lazy.load(name).name == name
        assert group.help.endswith(".")
        assert group.panel in ("Work", "Prepare", "Inspect")


def first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def test_every_training_command_resolves_and_begins_its_help_as_the_table_says() -> None:
    for name, entry in lazy.load("train").table.items():
        command = lazy.find(["train", name])
        assert (command.name, first_sentence(command.help)) == (name, entry.help)


def test_every_command_has_help_and_examples_that_parse() -> None:
    for words in commands():
        text = help_of(words)
        assert first_sentence(text).endswith("."), words
        if hasattr(lazy.find(words), "commands"):
            continue
        examples = examples_in(text)
        assert examples, f"{' '.join(words)} has no examples"
        for example in examples:
            assert parses(example), f"does not parse: chuk {' '.join(example)}"


def examples_in(text: str) -> list[list[str]]:
    """The arguments after `chuk` of each example line, up to a pipe or a redirection."""
    import shlex

    found = []
    for line in text.partition("Examples:")[2].splitlines():
        words = shlex.split(line, comments=True)
        while "chuk" in words:
            words = words[words.index("chuk") + 1 :]
            ends = [index for index, word in enumerate(words) if word in ("|", ">", "&&", ";")]
            found.append(words[: ends[0]] if ends else words)
    return found


def parses(words: list[str]) -> bool:
    """Whether Typer accepts the words; the command itself is not run."""
    command = lazy.load(words[0])
    rest = words[1:]
    context = None
    while hasattr(command, "commands"):
        context = command.make_context(words[0], rest[:1], parent=context, resilient_parsing=True)
        _, command, rest = command.resolve_command(context, list(rest))
    try:
        command.make_context(words[0], list(rest), parent=context)
    except Exception as error:  # Typer has no public name for the base of its usage errors
        pytest.fail(f"chuk {' '.join(words)}: {error}")
    return True


STARTS = {
    "version": ["--version"],
    "help": ["--help"],
    "no arguments": [],
    "group help": ["train", "--help"],
    "command help": ["train", "sft", "--help"],
    "wrong group": ["modle"],
    "wrong command": ["train", "stf"],
    "wrong option": ["train", "sft", "--modle", "x"],
    "wrong value": ["train", "sft", "--batch-size", "0"],
}

LIST_MODULES = """
import atexit, runpy, sys
atexit.register(lambda: print("MODULES", *{name.split(".")[0] for name in sys.modules}, file=sys.stderr))
sys.argv = ["chuk", *sys.argv[1:]]
runpy.run_module("chuk_cli", run_name="__main__", alter_sys=True)
"""


def modules_loaded_by(args: list[str]) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *args],
        capture_output=True,
        text=True,
        env=chuk_environment(),
        check=False,
    )
    line = next(line for line in done.stderr.splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:])


@pytest.mark.parametrize("args", STARTS.values(), ids=STARTS)
def test_start_up_loads_nothing_heavy(args: list[str]) -> None:
    assert not modules_loaded_by(args) & (HEAVY | {"yaml", "rich"})


def test_help_of_every_command_loads_nothing_heavy() -> None:
    for words in commands():
        assert not modules_loaded_by([*words, "--help"]) & HEAVY, words


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, env=chuk_environment(), check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize(
    ("args", "limit"),
    [(["--version"], 3), (["--help"], 16), (["train", "sft", "--help"], 16), (["modle"], 16)],
    ids=["version", "help", "command help", "usage error"],
)
def test_start_up_stays_cheap(args: list[str], limit: float) -> None:
    bare, ours = [], []
    for _ in range(5):
        bare.append(cpu_seconds([sys.executable, "-c", "pass"]))
        ours.append(cpu_seconds([sys.executable, "-m", "chuk_cli", *args]))
    assert min(ours) <= limit * min(bare), f"{min(ours) / min(bare):.1f} times `python -c pass`"


def test_version_and_help_say_what_they_should(run_chuk: RunChuk) -> None:
    assert run_chuk("--version").stdout == f"chuk {__version__}\n"
    for args in (["--help"], ["-h"]):
        done = run_chuk(*args)
        assert done.returncode == 0
        assert all(name in done.stdout for name in lazy.GROUPS)
    assert run_chuk().returncode == 2
    assert "Commands:" in run_chuk().stderr
