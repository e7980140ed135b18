"""The control API over HTTP: what is decoded, who is asked, what comes back."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import unavailable
from ron.services.oniond import api
from ron.services.oniond.config import OnionConfig
from tests.services.oniond.fakes import op_id
from tests.services.oniond.memory import Answer, World

PORTS = [{"onion_port": 80, "local": "127.0.0.1:8080"}]
UNKNOWN = "00000000-0000-4000-8000-00000000ffff"


class Case(SynchronousTestCase):
    config: OnionConfig | None = None

    def setUp(self) -> None:
        self.world = World(config=self.config)
        self.addCleanup(self.world.stop)
        self.token = self.world.bearer(("scope", "onion:*"))

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        return self.world.ask(self.token, method, f"/v1/onions{path}", body)

    def create(self, number: int, **more: Any) -> Answer:
        return self.ask("POST", "", {"op_id": op_id(number), "app": "wiki", "ports": PORTS, **more})

    def code(self, answer: Answer) -> tuple[int, str]:
        return answer.status, answer.body["error"]["code"]


class Bad(Case):
    """What is refused, before anything is done."""

    def test_a_path_that_is_longer_than_any_id(self) -> None:
        answer = self.ask("GET", "/" + "x" * 5000)
        self.assertEqual(self.code(answer), (404, "NotFound"))
        self.assertLess(len(answer.body["error"]["message"]), 100)

    def test_an_id_that_is_no_text(self) -> None:
        for path in ("/%ff", "/..%2f..%2fetc", "/%00", "/%0d%0aSet-Cookie:%20x"):
            self.assertIn(self.ask("GET", path).status, {400, 404}, path)

    def test_another_method(self) -> None:
        self.assertEqual(self.ask("PUT", "").status, 405)
        self.assertEqual(self.ask("PATCH", f"/{UNKNOWN}").status, 405)

    def test_an_op_id_is_asked_for(self) -> None:
        onion_id = self.create(1).body["id"]
        for method, path in (("DELETE", ""), ("POST", "/rotate"), ("POST", "/drain"), ("POST", "/export")):
            self.assertEqual(self.code(self.ask(method, f"/{onion_id}{path}", {})), (400, "BadRequest"), path)
        self.assertEqual(self.ask("GET", f"/{onion_id}").body["state"], "active")

    def test_a_key_cannot_be_brought_along(self) -> None:
        self.assertEqual(self.code(self.create(1, key="ED25519-V3:x")), (400, "BadRequest"))
        self.assertEqual(self.ask("GET", "").body, {"onions": []})

    def test_nothing_leaves_that_is_not_written_down(self) -> None:
        onion_id = self.create(1).body["id"]
        self.world.audit.trouble = unavailable("the disk is full")
        answer = self.ask("POST", f"/{onion_id}/export", {"op_id": op_id(2)})
        self.assertEqual(self.code(answer), (503, "StoreUnavailable"))
        self.assertNotIn("key", answer.body)


class Limits(Case):
    config = OnionConfig(max_onions=3, max_per_app=2)

    def test_so_many_and_no_more(self) -> None:
        self.assertEqual([self.create(n).status for n in (1, 2, 3)], [200, 200, 409])
        self.assertEqual(self.create(4, app="chat").status, 200)
        self.assertEqual(self.create(5, app="blog").status, 409)
        self.assertEqual(len(self.ask("GET", "").body["onions"]), 3)


class Once(Case):
    """An op_id is one act, however often it comes."""

    def test_create(self) -> None:
        first, again = self.create(1), self.create(1)
        self.assertEqual(first, again)
        self.assertEqual(self.code(self.create(1, persistence="ephemeral")), (409, "Conflict"))
        self.assertEqual(len(self.ask("GET", "").body["onions"]), 1)

    def test_how_long_one_waits_is_no_part_of_it(self) -> None:
        self.assertEqual(self.create(1, wait_s=0).status, 200)
        self.assertEqual(self.create(1).status, 200)

    def test_rotate(self) -> None:
        onion_id = self.create(1).body["id"]
        body = {"op_id": op_id(2), "grace_s": 60}
        first, again = (self.ask("POST", f"/{onion_id}/rotate", body).body for _ in range(2))
        self.assertEqual((first["onion"], first["previous"]), (again["onion"], again["previous"]))

    def test_delete(self) -> None:
        onion_id = self.create(1).body["id"]
        for _ in range(2):
            answer = self.ask("DELETE", f"/{onion_id}", {"op_id": op_id(2)})
            self.assertEqual(answer, (200, {"id": onion_id, "deleted": True}))
        self.assertEqual(self.ask("DELETE", f"/{onion_id}", {"op_id": op_id(3)}).status, 404)


class Answers(Case):
    def test_the_way_out_is_for_the_owner_and_not_for_lists(self) -> None:
        onion = self.create(1).body
        self.assertEqual(onion["socks"]["username"], onion["id"])
        self.assertEqual(self.ask("GET", f"/{onion['id']}").body["socks"], onion["socks"])
        self.assertIsNone(self.ask("GET", "").body["onions"][0]["socks"])

    def test_no_key_but_by_export(self) -> None:
        onion = self.create(1).body
        key = self.ask("POST", f"/{onion['id']}/export", {"op_id": op_id(2)}).body["key"]
        self.assertTrue(key.startswith("ED25519-V3:"))
        for answer in (onion, self.ask("GET", "").body, self.ask("GET", f"/{onion['id']}").body):
            self.assertNotIn(key.removeprefix("ED25519-V3:"), str(answer))

    def test_who_exported_is_on_record(self) -> None:
        onion = self.create(1).body
        self.ask("POST", f"/{onion['id']}/export", {"op_id": op_id(2)})
        event, fields = self.world.audit.records[-1]
        cap_id = self.world.authority.recognise(self.token).cap_id
        self.assertEqual((event, fields["onion"], fields["cap_id"]), ("onion_exported", onion["onion"], cap_id))

    def test_never_kept_by_caches(self) -> None:
        answer = self.world.exchange(self.token, "GET", "/v1/onions")
        self.assertEqual(answer.headers["cache-control"], "no-store")

    def test_only_what_changes_things_is_shed(self) -> None:
        """Reading, and taking a key along, go on when the promise burns."""
        writes = {(e.method, e.path) for e in api.endpoints(self.world.service) if e.writes}
        self.assertIn(("POST", "/v1/onions"), writes)
        self.assertNotIn(("POST", "/v1/onions/<onion_id>/export"), writes)
        self.assertFalse([path for method, path in writes if method == "GET"])
