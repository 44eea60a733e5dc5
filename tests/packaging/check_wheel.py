"""Build the wheel, install it alone in a clean environment, record a run, import each callback.

Run by ``make package``. The frameworks come from the environment that runs this script; the
package itself comes from the wheel, with the sources out of reach.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = """
import sys, tachograph
assert "site-packages" in tachograph.__file__, tachograph.__file__
url = f"sqlite:///{sys.argv[1]}/runs.sqlite"
with tachograph.start_run(config={"backend": url}) as run:
    run.log({"loss": 0.5}, step=1)
store = tachograph.open(url)
assert list(store.series(run.run_id, "loss")["value"]) == [0.5]
assert store.run(run.run_id).row["status"] == "finished"
third_party = {name.partition(".")[0] for name in sys.modules} & {"numpy", "torch", "sklearn"}
assert not third_party, third_party
print("recorded a run with the wheel alone")
"""
CALLBACKS = """
import os
os.environ.setdefault("KERAS_BACKEND", "torch")
import tachograph, tachograph.callbacks as callbacks
assert "site-packages" in tachograph.__file__, tachograph.__file__
for name in callbacks.__all__:
    print("imported", getattr(callbacks, name).__name__)
"""


def main() -> None:
    """Build, install, try."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _run(sys.executable, "-m", "build", "--outdir", str(place), str(ROOT))
        (wheel,) = place.glob("*.whl")
        _check_files(wheel)
        venv.create(place / "clean", with_pip=True)
        python = place / "clean/bin/python"
        _run(str(python), "-m", "pip", "install", "--quiet", "--no-index", str(wheel))
        _run(str(python), "-W", "error", "-c", RECORD, str(place), cwd=place)
        _run(str(place / "clean/bin/tachograph"), "--help", cwd=place, may_fail=True)
        frameworks = {"PYTHONPATH": sysconfig.get_paths()["purelib"]}
        _run(str(python), "-c", CALLBACKS, cwd=place, variables=frameworks)
    print("the wheel is complete")


def _check_files(wheel: Path) -> None:
    """Every source file of the package is in the wheel."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (
        ("src/tachograph", ""),
        ("callbacks", "callbacks/"),
        ("backends", "backends/"),
    ):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".sql") or file.name == "py.typed":
                relative = file.relative_to(ROOT / folder).as_posix()
                if not relative.startswith(("callbacks/", "backends/")) or prefix:
                    assert f"tachograph/{prefix}{relative}" in inside, f"{file} is not in the wheel"


def _run(
    *command: str,
    cwd: Path | None = None,
    variables: dict[str, str] | None = None,
    may_fail: bool = False,
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment | (variables or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode and not may_fail:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    lines = done.stdout.strip().splitlines()
    if lines and "build" not in command:
        print("\n".join(lines[-8:]))


if __name__ == "__main__":
    main()
