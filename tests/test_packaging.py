"""The wheel, the source distribution and the editable install, built and used as users do."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest
import yaml

import digitlab
from tests.commands import config_of

pytestmark = pytest.mark.xdist_group("packaging")  # built once
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's own paths."""
    hidden = ("PYTHONPATH", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def build(project: Path, out: Path, *options: str) -> Path:
    """Build a distribution with this environment's packages."""
    run(sys.executable, "-m", "hatchling", "build", "-d", out, *options, cwd=project)
    (built,) = out.iterdir()
    return built


class Installed:
    """An environment of its own with digitlab from a wheel, and all else from this environment."""

    def __init__(self, folder: Path, wheel: Path, keras: bool = True) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        (self.site,) = folder.glob("lib/python*/site-packages")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install"]
        run(*pip, "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
        # The folder of digitlab's dependencies; its own .pth files are not read.
        (self.site / "others.pth").write_text(str(Path(pytest.__file__).parents[1]))
        if not keras:
            text = "import sys\nsys.modules.update(dict.fromkeys(['keras', 'tensorflow']))\n"
            (self.site / "sitecustomize.py").write_text(text)

    def digitlab(self, *options: str, cwd: Path) -> str:
        return run(self.bin / "digitlab", *options, cwd=cwd).stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, folder / "dist", "-t", "sdist")) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"digitlab-{digitlab.__version__}"


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, as `python -m build` does."""
    return build(unpacked, tmp_path_factory.mktemp("wheel") / "dist", "-t", "wheel")


@pytest.mark.slow
def test_the_wheel_trains_and_reproduces_its_configs_in_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    installed = Installed(tmp_path / "venv", wheel, keras=False)
    (metadata,) = installed.site.glob("digitlab-*.dist-info/METADATA")
    text = metadata.read_text("utf-8")
    assert "](https://" in text
    assert re.findall(r"\]\((?!https?:)", text) == []  # links to files that an index page lacks
    empty = tmp_path / "empty"
    empty.mkdir()
    origin = f"digits/lenet5 of digitlab {digitlab.__version__}"
    assert f"of digitlab {digitlab.__version__}:\n" in installed.digitlab("configs", cwd=empty)
    installed.digitlab("configs", "digits/lenet5", "--copy", "my.yaml", cwd=empty)
    assert (empty / "my.yaml").read_bytes() == (ROOT / "configs/digits/lenet5.yaml").read_bytes()

    epoch = ("--trainer.max_epochs", "1")
    shown = installed.digitlab("fit", "--config", "digits/lenet5", *epoch, cwd=empty)
    assert f"config: {origin}\n" in shown
    run_folder = empty / "runs" / "digits-lenet5" / "version_0"
    assert config_of(run_folder)["from_configs"] == [origin]
    assert (run_folder / "metrics.json").exists()

    shown = installed.digitlab("reproduce", "digits/linear", "--seeds", "1", cwd=empty)
    assert "[1/1] digits/linear torch seed" in shown


@pytest.fixture(scope="module")
def editable(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An editable install of the unpacked source distribution, which stands for a clone."""
    folder = tmp_path_factory.mktemp("editable")
    program = "import sys\nfrom hatchling.build import build_editable\nbuild_editable(sys.argv[1])"
    run(sys.executable, "-c", program, folder, cwd=unpacked)
    return Installed(folder / "venv", next(folder.glob("*.whl")))


@pytest.mark.slow
def test_an_editable_install_reads_the_clone_s_configs(
    editable: Installed, unpacked: Path, tmp_path: Path
) -> None:
    config = unpacked / "configs" / "digits" / "linear.yaml"
    before = config.read_text("utf-8")
    config.write_text(f"{before}name: edited\n")
    try:
        shown = editable.digitlab("configs", "digits/linear", cwd=tmp_path)
    finally:
        config.write_text(before)
    assert yaml.safe_load(shown)["name"] == "edited"
    assert shown.startswith(f"# {config}\n")
    assert not list(editable.site.rglob("*.yaml"))  # no second copy, which would be an old one


@pytest.mark.slow
def test_the_source_distribution_has_all_that_its_tests_import_and_read(
    editable: Installed, unpacked: Path
) -> None:
    pytest_there = [str(editable.bin / "python"), "-m", "pytest", "-q", "-n0"]
    listed = run(*pytest_there, "--collect-only", "-m", "", cwd=unpacked).stdout
    collected = {line.partition("::")[0] for line in listed.splitlines() if "::" in line}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert files - collected == set()
    run(*pytest_there, "tests/test_packaging.py", "tests/reproduce/test_rows.py", cwd=unpacked)


def test_the_metadata_names_the_versions_of_python_and_the_citation_that_of_digitlab() -> None:
    minors = [it.rpartition(" ")[2] for it in PROJECT["classifiers"] if " 3." in it]
    assert minors == ["3.11", "3.12", "3.13"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == digitlab.__version__
    assert citation["license"] == PROJECT["license"]
