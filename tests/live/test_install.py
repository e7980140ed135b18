"""twistd finds our daemons from an editable and from a normal install. Builds a wheel; needs the package index."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.support import BIN, ROOT

PLUGINS = ("ron-node", "ron-oniond", "ron-tornet")
PACKAGE_DATA = (
    ("ron.tor", "templates/common.torrc"),
    ("ron.services.gateway", "page/index.html"),
    ("ron.services.edge", "assets/sri.json"),
    ("ron.services.edge", "assets/hello/hello.js"),
    ("ron.services.edge", "assets/leaflet/1.9.4/leaflet.js"),
    ("ron.services.mailbox", "schema/0001-mailbox.sql"),
    ("ron.services.oniond", "schema/0001-oniond.sql"),
    ("ron.ctl", "naturalearth/countries-50m.json"),
)


class InstallTests(SynchronousTestCase):
    """`twistd --help` lists the daemons, and their own help works."""

    def assert_plugins(self, twistd: Path, cwd: str) -> None:
        listing = subprocess.run([twistd, "--help"], cwd=cwd, capture_output=True, text=True, check=True, timeout=60)
        for plugin in PLUGINS:
            self.assertIn(f"    {plugin} ", listing.stdout)
        own = subprocess.run([twistd, "ron-node", "--help"], cwd=cwd, capture_output=True, text=True, timeout=60)
        self.assertIn("--config", own.stdout)

    def test_editable(self) -> None:
        with tempfile.TemporaryDirectory() as elsewhere:
            self.assert_plugins(BIN / "twistd", elsewhere)

    def test_normal(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            venv = folder / "venv"
            self.run_quietly(sys.executable, "-m", "venv", str(venv))
            # a copy: building must not leave its traces in the checkout
            self.run_quietly("git", "-C", str(ROOT), "checkout-index", "-a", f"--prefix={folder}/source/")
            self.run_quietly(
                str(BIN / "python"), "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(folder / "source")
            )
            wheel = next(folder.glob("*.whl"))
            self.run_quietly(str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", str(wheel))
            self.borrow_dependencies(venv)
            twistd = venv / "bin" / "twistd"
            twistd.write_text(f"#!{venv}/bin/python\nfrom twisted.scripts.twistd import run\nrun()\n")
            twistd.chmod(0o755)
            self.assert_plugins(twistd, name)
            self.assert_complete(venv, name)

    def borrow_dependencies(self, venv: Path) -> None:
        """Let `venv` see what is installed here, but not this checkout."""
        ours = Path(sysconfig.get_paths()["purelib"])
        site = next(venv.glob("lib/python*/site-packages"))
        code = f"import sys; sys.path.append({str(ours)!r})\n"
        (site / "borrowed.pth").write_text(code)

    def assert_complete(self, venv: Path, cwd: str) -> None:
        """Templates, page, assets, schema and map data came along."""
        lines = [
            "import ron, importlib.resources as r",
            f"assert ron.__file__.startswith({str(venv)!r}), ron.__file__",
            *(f"assert r.files({p!r}).joinpath({name!r}).is_file(), {name!r}" for p, name in PACKAGE_DATA),
        ]
        code = "\n".join(lines)
        self.run_quietly(str(venv / "bin" / "python"), "-c", code, cwd=cwd)

    def run_quietly(self, *command: str, cwd: str | None = None) -> None:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 0, f"{command}: {done.stdout}{done.stderr}")
