"""The house rules that a machine can keep: layout, direction of imports, sizes, and that the docs name everything."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from statistics import median

import pytest

from server_process import ROOT, SOURCE_ROOTS, clean_environment
from wan_server.settings import PREFIX, Settings

#: each package and the packages that it may import
MAY_IMPORT = {
    "wan_kernels": set(),
    "wan_pipelines": {"wan_kernels"},
    "wan_server": {"wan_pipelines", "wan_kernels"},
}
#: the only modules of wan_pipelines that may be imported at the top of a module of wan_server
TORCH_FREE = {
    f"wan_pipelines.{name}"
    for name in (
        "profile",
        "preset",
        "plan",
        "segments",
        "windows",
        "hd",
        "noise_levels",
        "sizes",
        "errors",
        "placement",
        "peaks",
        "footprint",
        "activations",
        "effort",
        "vae_layers",
        "vae_memory",
        "weights.files",
        "s2v.clips",
        "s2v.memory",
    )
}
LONGEST_FILE = 300
LONGEST_MODEL_FILE = 500
MODEL_FILES = {"vae.py", "dit.py"}
LONGEST_FUNCTION = 60
MEDIAN_FUNCTION = 8

MODULES = sorted(path for root in SOURCE_ROOTS for path in (ROOT / root).glob("wan_*/**/*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Absolute names of the modules that are imported."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def run_python(code: str, told: str = "") -> str:
    """Output of a fresh interpreter that sees only the source roots; `told` is its input."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), input=told, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", [*SOURCE_ROOTS, "tests", "scripts", "configs"])
def test_top_folders_are_no_packages(folder: str):
    assert not list((ROOT / folder).glob("__init__.py"))


def test_every_source_folder_is_a_package():
    assert [name(path.parent) for path in MODULES if not (path.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_one_way(path: Path):
    package = path.relative_to(ROOT).parts[1]
    tree = ast.parse(path.read_text())
    named = {module.partition(".")[0] for module in imports(ast.walk(tree))}
    assert named & MAY_IMPORT.keys() <= MAY_IMPORT[package] | {package}


def test_the_front_end_imports_no_torch():
    heavy = "{'torch', 'diffusers', 'transformers', 'av', 'numpy', 'PIL'}"
    code = f"import sys, wan_server.app; print(sorted({heavy} & sys.modules.keys()))"
    assert run_python(code).strip() == "[]"


def test_the_torch_free_modules_import_no_torch():
    code = """
import importlib, sys
for module in sys.stdin.read().split():
    importlib.import_module(module)
    if "torch" in sys.modules:
        sys.exit(f"{module} imports torch")
"""
    run_python(code, "\n".join(sorted(TORCH_FREE)))


@pytest.mark.parametrize("path", [p for p in MODULES if "wan_server" in p.parts], ids=name)
def test_the_server_imports_heavy_pipelines_only_inside_functions(path: Path):
    top = ast.parse(path.read_text()).body
    pipelines = {module for module in imports(top) if module.startswith("wan_pipelines")}
    assert pipelines <= TORCH_FREE


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= (LONGEST_MODEL_FILE if path.name in MODEL_FILES else LONGEST_FILE)
    too_long = {f.name: length(f) for f in functions(ast.parse(text)) if length(f) > LONGEST_FUNCTION}
    assert too_long == {}


def test_the_median_function_is_short():
    lengths = [length(f) for path in MODULES for f in functions(ast.parse(path.read_text()))]
    assert median(lengths) <= MEDIAN_FUNCTION


def test_the_architecture_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = [path for path in MODULES if path.name != "__init__.py"]
    assert [name(path) for path in modules if path.name not in text] == []


def test_every_setting_is_documented_with_its_default():
    text = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(rf"^\| `{PREFIX}(\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    fields = {field.upper(): info.default for field, info in Settings.model_fields.items()}
    assert rows.keys() == fields.keys()
    shown = {variable: default.strip().strip("`") for variable, default in rows.items()}
    assert shown == {variable: as_shown(default) for variable, default in fields.items()}


def as_shown(default: object) -> str:
    """A default as the table writes it."""
    if default is None or default in ("", ()):
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_imported_distribution_is_declared():
    listed = PROJECT["project"]["dependencies"]
    declared = {re.match(r"[\w.-]+", entry)[0].lower() for entry in listed}  # pyright: ignore[reportOptionalSubscript]
    owners = packages_distributions()
    imported = {
        module.partition(".")[0] for path in MODULES for module in imports(ast.walk(ast.parse(path.read_text())))
    }
    foreign = imported - MAY_IMPORT.keys() - sys.stdlib_module_names
    assert [module for module in sorted(foreign) if not {owner.lower() for owner in owners[module]} & declared] == []


def test_the_package_ships_every_package_folder():
    find = PROJECT["tool"]["setuptools"]["packages"]["find"]
    assert find == {"where": list(SOURCE_ROOTS), "namespaces": False}


def test_every_dependency_is_pinned():
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    names = {re.match(r"[\w.-]+", entry)[0].lower() for entry in wanted}  # pyright: ignore[reportOptionalSubscript]
    assert sorted(names - pins) == []


def test_the_example_file_names_known_settings():
    text = (ROOT / "configs" / "server.example.env").read_text()
    named = set(re.findall(rf"^# {PREFIX}(\w+)=", text, re.MULTILINE))
    assert named
    assert named <= {field.upper() for field in Settings.model_fields}
