"""Combinations that are unsafe or cannot work are refused, with the key and the fix."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError, convert
from ron.services.configs import NodeConfig
from ron.tor.clientauth import generate
from ron.tor.onionkeys import address_of, new_key
from tests.services.configtables import APPS, AUTOSCALE, EXPOSE, check

PEER = address_of(new_key())


class Rules(SynchronousTestCase):
    """What no single key can know."""

    def refused(self, key: str, daemon: str = "ron-node", **sections: Any) -> ConfigError:
        tables: dict[str, Any] = {"apps": APPS} if daemon == "ron-oniond" else {}
        error: ConfigError = self.assertRaises(ConfigError, check, daemon, {**tables, **sections})
        self.assertEqual(error.key, key, error.message)
        self.assertTrue(error.hint)
        return error

    def test_listeners_are_on_loopback(self) -> None:
        for host in ("0.0.0.0", "192.168.1.1", "[::]", "8.8.8.8"):  # noqa: S104
            address = f"{host}:9000"
            for key, daemon, sections in (
                ("gateway.bind", "ron-node", {"gateway": {"bind": address}}),
                ("mailbox.listen", "ron-node", {"mailbox": {"listen": address}}),
                ("admin.bind", "ron-oniond", {"admin": {"bind": address}}),
            ):
                self.assertIn("not a loopback address", self.refused(key, daemon, **sections).message)

    def test_listeners_are_addresses(self) -> None:
        for text in ("9080", "localhost:9080", "127.0.0.1:99999", "127.0.0.1:9080\n", ""):
            self.refused("gateway.bind", gateway={"bind": text})
            self.refused("admin.bind", "ron-oniond", admin={"bind": text})
        for text in ("localhost:9410", "127.0.0.1:99999", "x"):
            self.refused("mailbox.listen", mailbox={"listen": text})

    def test_loopback_of_either_family_and_a_port_of_the_systems_choice(self) -> None:
        check("ron-node", {"gateway": {"bind": "[::1]:9080"}, "mailbox": {"listen": "[::1]:9410"}})
        check("ron-node", {"gateway": {"bind": "127.0.0.1:0"}, "mailbox": {"listen": "127.0.0.1:0"}})

    def test_two_listeners_cannot_share_an_address(self) -> None:
        self.refused("mailbox.listen", gateway={"bind": "127.0.0.1:7"}, mailbox={"listen": "127.0.0.1:7"})
        self.refused("mailbox.listen", gateway={"bind": "[::1]:7"}, mailbox={"listen": "[0::1]:7"})
        check("ron-node", {"gateway": {"bind": "127.0.0.1:7"}, "mailbox": {"listen": "127.0.0.2:7"}})

    def test_a_micronode_embeds_its_onions(self) -> None:
        self.refused("onion.embedded", onion={"embedded": False})

    def test_amnesia_writes_no_log_file(self) -> None:
        for daemon in ("ron-node", "ron-oniond"):
            self.refused("log.to", daemon, onion={"amnesia": True})
            self.refused("log.to", daemon, onion={"amnesia": True}, log={"to": "file"})
            for to in ("memory", "stderr"):
                tables: dict[str, Any] = {"onion": {"amnesia": True}, "log": {"to": to}}
                check(daemon, tables if daemon == "ron-node" else {**tables, "apps": APPS})

    def test_nobody_looks_into_the_memory_under_amnesia(self) -> None:
        sections: dict[str, Any] = {"onion": {"amnesia": True}, "log": {"to": "memory"}}
        for daemon in ("ron-node", "ron-oniond"):
            self.refused("profiling.enabled", daemon, **sections, profiling={"enabled": True})
            more = {"apps": APPS} if daemon == "ron-oniond" else {}
            check(daemon, {**sections, **more, "profiling": {"enabled": False}})
            check(daemon, {**more, "profiling": {"enabled": True}})
        profiling = convert({}, NodeConfig).profiling
        self.assertEqual((profiling.allowed(amnesia=False), profiling.allowed(amnesia=True)), (True, False))

    def test_amnesia_keeps_no_folder_that_persists(self) -> None:
        sections: dict[str, Any] = {"onion": {"amnesia": True}, "log": {"to": "memory"}}
        for key in ("mailbox.dead_letter_dir", "edge.cache_dir"):
            section, name = key.split(".")
            for folder in (
                "/var/lib/ron",
                "cache",
                "/dev/shm",
                "/dev/shmem/x",
                "/dev/shm/../../var/x",
                "/run/user",
                "//dev/shm/x/../../../etc",
                "/tmp/x",
            ):
                self.refused(key, **sections, **{section: {name: folder}})
                check("ron-node", {section: {name: folder}})
            for folder in ("", "/dev/shm/ron", "/run/user/1000/ron", "/dev/shm/./a/../b"):
                check("ron-node", {**sections, section: {name: folder}})

    def test_federation_needs_its_handshake(self) -> None:
        for daemon in ("ron-node", "ron-oniond", "omnigate"):
            self.refused("federation.zk_handshake", daemon, federation={"enabled": True, "zk_handshake": False})
            apps = {"apps": APPS} if daemon == "ron-oniond" else {}
            check(daemon, {**apps, "federation": {"zk_handshake": False}})
            check(daemon, {**apps, "federation": {"enabled": True, "allow": [PEER]}})

    def test_peers_are_onions_named_once(self) -> None:
        mistyped = PEER[:10] + ("a" if PEER[10] != "a" else "b") + PEER[11:]
        for wrong in ("x.onion", PEER.upper(), PEER.removesuffix(".onion"), mistyped, "example.org"):
            self.refused("federation.allow[0]", federation={"enabled": True, "allow": [wrong]})
            peer = [{"onion": wrong, "socks": "127.0.0.1:9050"}]
            self.refused("federation.peer[0].onion", "ron-oniond", federation={"enabled": True, "peer": peer})
            check("ron-node", {"federation": {"allow": [wrong]}})
        self.refused("federation.allow[1]", federation={"enabled": True, "allow": [PEER, PEER]})
        for port in (0, 65536):
            peer = [{"onion": PEER, "socks": f"127.0.0.1:{port}"}]
            self.refused("federation.peer[0].socks", federation={"enabled": True, "peer": peer})
        for socks in ("0.0.0.0:9050", "localhost:9050", "127.0.0.1", ""):
            tables = {"federation": {"peer": [{"onion": PEER, "socks": socks}]}}
            self.assertRaises(ConfigError, convert, tables, NodeConfig)

    def test_who_is_kept_federated_is_allowed(self) -> None:
        onion = {"federate_peers": [PEER]}
        self.refused("onion.federate_peers[0]", onion=onion, federation={"enabled": True})
        check("ron-node", {"onion": onion, "federation": {"enabled": True, "allow": [PEER]}})
        self.refused("onion.federate_peers[0]", onion={"federate_peers": ["x"]}, federation={"enabled": True})

    def test_a_federated_onion_stays_and_is_nobody_elses(self) -> None:
        memory = {"onion": {"amnesia": True}, "log": {"to": "memory"}, "federation": {"enabled": True}}
        self.refused("federation.enabled", **memory)
        self.refused("federation.enabled", "ron-oniond", **memory)
        self.refused("federation.enabled", onion={"app": "federation"}, federation={"enabled": True})
        apps = [{"name": "federation", "expose": EXPOSE}]
        self.refused("federation.enabled", "ron-oniond", apps=apps, federation={"enabled": True})

    def test_attestation_is_refused(self) -> None:
        for daemon in ("ron-node", "omnigate"):
            self.refused("security.attestation", daemon, security={"attestation": True})

    def test_the_difficulty_stays_within_its_bound(self) -> None:
        for daemon in ("ron-node", "omnigate"):
            self.refused("dos.pow_difficulty", daemon, dos={"pow_difficulty": 29})
            self.refused("dos.pow_difficulty", daemon, dos={"pow_upper_bound": 11})
            check(daemon, {"dos": {"pow_difficulty": 30, "pow_upper_bound": 30}})

    def test_backends_have_a_number_that_fits(self) -> None:
        self.refused("oniond.scale_min", "omnigate", oniond={"scale_min": 3, "scale_max": 2})
        self.refused("oniond.autoscale", "omnigate", oniond={"autoscale": {"circuits_p95": 1}})
        self.refused(
            "oniond.autoscale.circuits_p95", "omnigate", oniond={"autoscale": {**AUTOSCALE, "circuits_p95": 0}}
        )
        check("omnigate", {"oniond": {"scale_min": 2, "scale_max": 2, "autoscale": AUTOSCALE}})

    def test_tls_needs_certificate_and_key(self) -> None:
        for section, daemon in (
            ("gateway", "ron-node"),
            ("admin", "ron-oniond"),
            ("gateway", "omnigate"),
            ("admin", "omnigate"),
        ):
            key = f"{section}.tls"
            self.refused(f"{key}.key", daemon, **{section: {"tls": {"certificate": "a.crt"}}})
            self.refused(f"{key}.certificate", daemon, **{section: {"tls": {"key": "a.key"}}})
            self.refused(f"{key}.certificate", daemon, **{section: {"tls": {"client_ca": "ca.crt"}}})
            self.refused(f"{key}.certificate", daemon, **{section: {"tls": {}}})
            known = {"certificate": "a.crt", "key": "a.key", "clients": ["ron://node/desk"]}
            self.refused(f"{key}.client_ca", daemon, **{section: {"tls": known}})
            with self.assertRaises(ConfigError):
                check(daemon, {section: {"tls": {**known, "client_ca": "ca.crt", "clients": ["desk"]}}})

    def test_other_listeners_are_loopback_addresses_of_their_own_too(self) -> None:
        keys = ("gateway.bind", "mailbox.listen", "mailbox.ws_listen", "api.grpc_addr", "admin.bind")
        for daemon, known in (("ron-node", keys[:-1]), ("omnigate", keys)):
            for later, key in enumerate(known):
                section, name = key.split(".")
                self.refused(key, daemon, **{section: {name: "0.0.0.0:7000"}})
                for earlier in known[:later]:
                    tables: dict[str, Any] = {"mailbox": {}}
                    for each in (earlier, key):
                        tables.setdefault(each.split(".")[0], {})[each.split(".")[1]] = "127.0.0.1:7000"
                    error = self.refused(key, daemon, **tables)
                    self.assertIn(earlier, error.message)
        check("ron-node", {"mailbox": {"ws_listen": ""}, "api": {"grpc_addr": ""}})
        self.refused("gateway.bind", gateway={"bind": ""})

    def test_an_endpoint_is_a_url(self) -> None:
        for endpoint in ("127.0.0.1:4318", "ftp://x/", "http://", "http://a b/"):
            self.refused("observability.otel_endpoint", observability={"otel_endpoint": endpoint})
        check("ron-node", {"observability": {"otel_endpoint": "http://127.0.0.1:4318"}})

    def test_an_onion_port_is_exposed_once(self) -> None:
        twice = [EXPOSE[0], EXPOSE[1], EXPOSE[0]]
        self.refused("gateway.expose[2].onion_port", gateway={"expose": twice})
        self.refused("apps[0].expose[2].onion_port", "ron-oniond", apps=[{"name": "wiki", "expose": twice}])

    def test_only_this_machine_is_exposed(self) -> None:
        for local in ("0.0.0.0:80", "example.com:80", "10.0.0.1:80", "127.0.0.1", "127.0.0.1:80 x", "127.0.0.1:80\n"):
            expose = [{"local": local, "onion_port": 80}]
            self.refused("gateway.expose[0].local", gateway={"expose": expose})
            self.refused("apps[0].expose[0].local", "ron-oniond", apps=[{"name": "wiki", "expose": expose}])

    def test_an_exposed_port_exists(self) -> None:
        for port in ("0", "00000", "65536", "99999"):
            self.refused(
                "gateway.expose[0].local", gateway={"expose": [{"local": f"127.0.0.1:{port}", "onion_port": 80}]}
            )
        for port in (0, 65536, -1):
            self.refused(
                "gateway.expose[0].onion_port",
                gateway={"expose": [{"local": "127.0.0.1:80", "onion_port": port}]},
            )

    def test_an_app_is_there_once(self) -> None:
        error = self.refused("apps[2].name", "ron-oniond", apps=[*APPS, APPS[0]])
        self.assertIn("'wiki'", error.message)

    def test_an_apps_name_is_a_file_name(self) -> None:
        for name in ("", "Wiki", "a/b", "..", "-a", "a_b", "a" * 64, "ä"):
            self.refused("apps[0].name", "ron-oniond", apps=[{"name": name, "expose": EXPOSE}])
            self.refused("onion.app", onion={"app": name})


class Clusters(SynchronousTestCase):
    """`[balance]`, of a daemon of its own and of a node."""

    def refused(self, key: str, services: Any = None, onion: Any = None, **balance: Any) -> None:
        services = [{"name": "main", "ports": ["80:127.0.0.1:8080"]}] if services is None else services
        tables = {"balance": {"services": services, **balance}, "onion": onion or {}}
        for daemon, enabled in (("ron-balance", {}), ("ron-node", {"enabled": True})):
            judged = {**tables, "balance": {**tables["balance"], **enabled}}
            error: ConfigError = self.assertRaises(ConfigError, check, daemon, judged)
            self.assertEqual(error.key, key, error.message)
            self.assertTrue(error.hint)

    def test_there_is_something_to_publish(self) -> None:
        self.refused("balance.services", services=[])
        check("ron-node", {"balance": {"enabled": False}})

    def test_services_have_names_of_their_own(self) -> None:
        one = {"name": "main", "ports": ["80:127.0.0.1:8080"]}
        self.refused("balance.services[1].name", services=[one, one])

    def test_so_many_as_sign_are_there(self) -> None:
        one = {"name": "main", "ports": ["80:127.0.0.1:8080"], "mode": "threshold", "threshold": 4, "members": 3}
        self.refused("balance.services[0].threshold", services=[one])

    def test_ports(self) -> None:
        wrong = (
            "80",
            "0:127.0.0.1:8080",
            "80:127.0.0.1:0",
            "80:127.0.0.1:65536",
            "65536:127.0.0.1:1",
            "80:10.0.0.1:80",
        )
        for port in (*wrong, "80:unix:relative", "80:unix:/a b", "80:aaaa.onion:80", "80:127.0.0.1:8080\n", "x:y"):
            self.refused("balance.services[0].ports[0]", services=[{"name": "main", "ports": [port]}])
        twice = ["80:127.0.0.1:1", "80:unix:/run/x"]
        self.refused("balance.services[0].ports[1]", services=[{"name": "main", "ports": twice}])
        fine = [f"80:{PEER}:80", "81:unix:/run/app.sock", "82:127.0.0.1:8082", "83:[::1]:8083", "84:localhost:8084"]
        check("ron-balance", {"balance": {"services": [{"name": "main", "ports": fine}]}})

    def test_a_port_leads_to_one_place(self) -> None:
        """A node has one head for all its addresses."""
        one, two = {"name": "main", "ports": ["80:127.0.0.1:8080"]}, {"name": "shop", "ports": ["81:unix:/run/a"]}
        other = {"name": "blog", "ports": ["81:unix:/run/a", "80:127.0.0.1:8081"]}
        self.refused("balance.services[2].ports[1]", services=[one, two, other])
        error = self.assertRaises(ConfigError, check, "ron-balance", {"balance": {"services": [one, two, other]}})
        self.assertIn("balance.services[0].ports[0]", error.message)
        # two ways to write one target
        other["ports"] = ["80:localhost:8080", "81:unix:/run/a"]
        check("ron-balance", {"balance": {"services": [one, two, other]}})

    def test_clients_are_keys(self) -> None:
        """One that is none would be left out, and the address be published for nobody."""
        good, low_order, spare_bits = generate().public.base32, "A" * 52, "A" * 51 + "B"
        for bad in ((low_order,), (spare_bits,)):
            self.refused(
                "balance.services[0].clients[0]", services=[{"name": "m", "ports": ["80:127.0.0.1:8"], "clients": bad}]
            )
        twice = {"name": "m", "ports": ["80:127.0.0.1:8"], "clients": [good, good]}
        self.refused("balance.services[0].clients[1]", services=[twice])
        check("ron-balance", {"balance": {"services": [{**twice, "clients": [good]}]}})

    def test_one_lost_beat_is_no_dead_node(self) -> None:
        self.refused("balance.suspect_ms", beat_ms=1000, suspect_ms=2999)

    def test_nodes_share_a_network(self) -> None:
        self.refused("onion.network", seeds=["10.0.0.2:9470"])

    def test_an_onion_is_reached_through_a_tor(self) -> None:
        self.refused("balance.socks", advertise=f"{PEER}:9470")
        self.refused("balance.socks", seeds=[f"{PEER}:9470"], onion={"network": "public"})

    def test_amnesia_keeps_nothing_on_disk(self) -> None:
        log = {"log": {"to": "memory"}}
        services = [{"name": "main", "ports": ["80:127.0.0.1:8080"]}]
        tables = {"balance": {"services": services}, "onion": {"amnesia": True}, **log}
        error: ConfigError = self.assertRaises(ConfigError, check, "ron-balance", tables)
        self.assertEqual(error.key, "balance.directory")
        check("ron-balance", {**tables, "balance": {"services": services, "directory": "/dev/shm/ron"}})
