"""What holds of one process holds of workers: the invariants that a request can show, and requests of somebody who
means harm, all asked of a worker."""

from __future__ import annotations

from typing import Any

from tests.services.kms import test_hostile, test_invariants
from tests.services.kms.workers.ship import Ship
from tests.services.kms.world import Answer


class Followed(Ship):
    """Tests change votes and config behind the service's back; here every worker hears of it before it is asked."""

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        await self.settled()
        return await super().ask(method, path, body, **more)


class Invariants(Followed):
    set = test_invariants.Memory.set
    test_i01 = test_invariants.Memory.test_i01_private_halves_are_never_shown
    test_i03 = test_invariants.Memory.test_i03_a_capability_or_nothing
    test_i04 = test_invariants.Memory.test_i04_custody_makes_no_policy
    test_i05 = test_invariants.Memory.test_i05_old_versions_verify_on
    test_i07 = test_invariants.Memory.test_i07_hybrid
    test_i07_one_half = test_invariants.Memory.test_i07_a_key_without_a_second_half
    test_i09 = test_invariants.Memory.test_i09_tenants_do_not_see_one_another
    test_i09_op_id = test_invariants.Memory.test_i09_one_op_id_of_two_tenants
    test_i13 = test_invariants.Memory.test_i13_unknown_fields_and_sizes
    test_i14 = test_invariants.Memory.test_i14_an_op_id_is_one_act
    test_i14_again = test_invariants.Memory.test_i14_what_failed_may_be_tried_again
    test_i15 = test_invariants.Memory.test_i15_algorithms_on_the_list_only
    test_i17 = test_invariants.Memory.test_i17_a_rate_for_everybody
    test_i18 = test_invariants.Memory.test_i18_verifying_without_the_backend
    test_i19 = test_invariants.Memory.test_i19_signing_says_that_it_cannot


class Bodies(Followed, test_hostile.Bodies):
    pass


class Spellings(Followed, test_hostile.Spellings):
    pass


class Tenants(Followed, test_hostile.Tenants):
    pass


class Replays(Followed, test_hostile.Replays):
    pass
