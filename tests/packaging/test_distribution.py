"""What a user installs: wheel and sdist, built; the wheel runs beside what its metadata names, and nothing else."""

import doctest
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import balanced_grad as bg

pytest.importorskip("build", reason="pip install 'balanced-grad[dev]'")

ROOT = Path(__file__).resolve().parents[2]


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel made of it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=ROOT)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def closure(requirements):
    """Names of the installed distributions that these need, without extras."""
    names, waiting = set(), list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in names:
            names.add(name)
            waiting += metadata.requires(name) or []
    return names


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    """A folder with the wheel, and links to what it requires: nothing of the development environment besides."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(folder)
    (info,) = folder.glob("*.dist-info")
    required = metadata.PathDistribution(info).requires
    for name in closure(required):
        for file in metadata.files(name):
            top = file.parts[0]
            source = Path(file.locate()).parents[len(file.parts) - 1] / top
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def isolated(site, *arguments, cwd):
    """Python without its site-packages."""
    code = f"import sys, runpy; sys.path.insert(0, {str(site)!r}); sys.argv = sys.argv[1:]; "
    code += "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    return run(sys.executable, "-I", "-S", "-W", "error", "-c", code, *arguments, cwd=cwd)


def test_the_page_on_an_index_has_no_link_beside_it(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        page = wheel.read(name).decode().partition("\n\n")[2]
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    assert any(link.endswith(".png") for link in links)
    here = re.findall(r"\]\(docs/([^)#\s]+)", (ROOT / "README.md").read_text())
    assert [file for file in here if not (ROOT / "docs" / file).exists()] == []


def test_the_version_is_in_one_place(built):
    wheel, sdist = built
    assert wheel.name == f"balanced_grad-{bg.__version__}-py3-none-any.whl"
    assert sdist.name == f"balanced_grad-{bg.__version__}.tar.gz"
    assert "version =" not in (ROOT / "pyproject.toml").read_text().split("[project]")[1].split("[")[0]


def test_what_cites_the_release_names_it_and_its_date():
    newest, date = re.findall(r"^## \[(\d.*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    assert newest == zenodo["version"] == bg.__version__
    assert zenodo["publication_date"] == date
    assert f"\nversion: {newest}\ndate-released: {date}\n" in (ROOT / "CITATION.cff").read_text()
    notes = (ROOT / "docs" / "upgrading.md").read_text()
    assert re.search(rf"^## From \S+ to {re.escape(newest.rpartition('.')[0])}$", notes, re.MULTILINE)


def test_twine_finds_nothing_wrong(built):
    assert "PASSED" in run(sys.executable, "-m", "twine", "check", "--strict", *built)


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"balanced_grad", f"balanced_grad-{bg.__version__}.dist-info"}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "balanced_grad").rglob("*.py")}
    assert package <= set(names)
    assert "balanced_grad/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_its_tests_need(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    tracked = run("git", "ls-files", cwd=ROOT).split() if (ROOT / ".git").exists() else []
    assert {name for name in tracked if name.split("/")[0] != ".ci"} - {".gitignore"} <= names
    assert {"run.py", "noxfile.py", "constraints.txt", "constraints-lowest.txt", "pyproject.toml"} <= names
    assert {"README.md", "LICENSE"} <= names


def test_nothing_of_the_development_environment_is_in_reach(site, tmp_path):
    for name in ("pytest", "hypothesis", "sklearn", "lightning"):
        with pytest.raises(AssertionError, match=f"No module named '?{name}"):
            isolated(site, name, cwd=tmp_path)


def test_the_programs_of_the_readme_run_in_it(site, tmp_path):
    """The blocks of the page, as one program."""
    examples = doctest.DocTestParser().get_examples((ROOT / "README.md").read_text())
    program = "".join(example.source for example in examples)
    assert "balanced_grad as bg" in program
    (tmp_path / "program.py").write_text(program)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import runpy; runpy.run_path('program.py')"
    run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path)


def test_its_commands_run(site, tmp_path):
    assert isolated(site, "balanced_grad", "--version", cwd=tmp_path).strip() == bg.__version__
    assert "check" in isolated(site, "balanced_grad", "--help", cwd=tmp_path)


def test_the_lowest_versions_are_the_declared_ones():
    """constraints-lowest.txt has the bound of every package of the core and of the extras that the matrix installs."""
    text = (ROOT / "constraints-lowest.txt").read_text()
    lowest = dict(line.split("==") for line in text.splitlines() if "==" in line)
    declared = metadata.requires("balanced-grad")
    for each in map(Requirement, declared):
        extra = re.search(r'extra == "(\w+)"', str(each.marker or ""))
        if extra is None or extra[1] in ("demo", "bench"):
            (bound,) = [spec.version for spec in each.specifier if spec.operator == ">="]
            given = lowest[each.name]
            assert given == bound or given.startswith(f"{bound}."), each


def test_the_core_imports_torch_and_numpy_only():
    """What is heavy besides is imported where it is used."""
    code = (
        "import sys, balanced_grad; print([m for m in ('scipy', 'cvxpy', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "[]"
