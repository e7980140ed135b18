"""What is shipped for ron-kms: its config keeps K-G7, its unit and each drop-in keep the sandbox (needs systemd)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import convert, parse
from ron.services.kms.config import KmsConfig
from ron.services.kms.phases import Phase, PqSettings, tenant_phase

ROOT = Path(__file__).resolve().parents[3]
UNIT = ROOT / "etc" / "systemd" / "ron-kms.service"
DROP_INS = ROOT / "etc" / "systemd" / "drop-ins"
NO_SYSTEMD = None if shutil.which("systemd-analyze") else "systemd-analyze is not installed"


class Shipped(SynchronousTestCase):
    def test_kg7_the_shipped_config_asks_for_both_halves(self) -> None:
        """And so does a config that says nothing of it: hybrid AND, for every tenant."""
        tables = {name: value for name, value in parse(ROOT / "etc" / "ron-kms.toml").items() if name in {"pq"}}
        for found in (convert(tables, KmsConfig).pq, KmsConfig().pq):
            settings = PqSettings(found.produce_hybrid, found.verify_mode, found.rollout_percent, found.min_verify_mode)
            for tenant in ("core", "acme", "x" * 63):
                self.assertIs(tenant_phase(settings, tenant), Phase.HYBRID_AND)


class Sandboxed(SynchronousTestCase):
    skip = NO_SYSTEMD

    def exposure(self, *drop_ins: Path) -> subprocess.CompletedProcess[str]:
        """What systemd says of the unit with these."""
        with tempfile.TemporaryDirectory(prefix="ron-units-") as folder:
            shutil.copy(UNIT, folder)
            more = Path(folder) / f"{UNIT.name}.d"
            more.mkdir()
            for one in drop_ins:
                shutil.copy(one, more)
            words = ["security", "--no-pager", "--offline=true", "--threshold=25", f"{folder}/{UNIT.name}"]
            return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)

    def test_exposure_with_each_drop_in(self) -> None:
        """At most 2.5, with none of them, each and all."""
        found = sorted(DROP_INS.glob("ron-kms-*.conf"))
        self.assertEqual(len(found), 3)
        for drop_ins in ([], *([one] for one in found), found):
            done = self.exposure(*drop_ins)
            self.assertEqual(done.returncode, 0, done.stdout[-300:] + done.stderr)

    def test_a_tpm_and_no_other_device(self) -> None:
        """The drop-in lets it open that one; without it there is none."""
        with_tpm = self.exposure(DROP_INS / "ron-kms-tpm.conf").stdout
        self.assertIn("/dev/tpmrm0:rw", with_tpm)
        self.assertNotIn("tpmrm0", self.exposure().stdout)
        self.assertIn("DevicePolicy=closed", (DROP_INS / "ron-kms-tpm.conf").read_text())

    def test_an_open_unit_would_be_noticed(self) -> None:
        """The threshold does fail."""
        with tempfile.NamedTemporaryFile("w", suffix=".conf", prefix="open-") as file:
            file.write("[Service]\nNoNewPrivileges=no\nCapabilityBoundingSet=~\nSystemCallFilter=\nProtectSystem=no\n")
            file.write("PrivateDevices=no\nProtectHome=no\nPrivateTmp=no\nUser=root\nRestrictNamespaces=no\n")
            file.flush()
            self.assertNotEqual(self.exposure(Path(file.name)).returncode, 0)
