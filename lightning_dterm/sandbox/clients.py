"""Several judge processes behind one face, for machines with more slots than one judge can keep busy."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_dterm.sandbox.client import Client, SlotState
from lightning_dterm.sandbox.result import Job, Result
from lightning_dterm.sandbox.slot import Settings
from lightning_dterm.sandbox.tickets import Results, Ticket

SLOTS_PER_JUDGE = 6
"""A judge takes about a ninth of the processor time of what it judges; the rest is for answering at once."""


class Clients:
    """Stands in for one :class:`~lightning_dterm.sandbox.client.Client`; each job goes to the judge with least to do.

    Args:
        settings: How zygotes are made.
        slots: Programs at a time, over all judges.
    """

    def __init__(self, settings: Settings, slots: int) -> None:
        self.settings, self.slots = settings, slots
        n_judges = -(-slots // SLOTS_PER_JUDGE)
        self._clients = [Client(settings, (slots + place) // n_judges) for place in range(n_judges)]

    @property
    def pid(self) -> int | None:
        """The first judge's process id."""
        return self._clients[0].pid

    @property
    def restarts(self) -> int:
        """Judges lost and replaced."""
        return sum(client.restarts for client in self._clients)

    @property
    def states(self) -> dict[int, SlotState]:
        """What the zygotes in use reported, by slot."""
        found, first = {}, 0
        for client in self._clients:
            found.update({first + place: state for place, state in client.states.items()})
            first += client.slots
        return found

    def submit(self, jobs: Sequence[Job]) -> Results:
        """Hand jobs to the judges at once; wait for none."""
        shares: list[list[int]] = [[] for _ in self._clients]
        loads = [client.load for client in self._clients]
        for place in range(len(jobs)):
            least = loads.index(min(loads))
            shares[least].append(place)
            loads[least] += 1 / self._clients[least].slots
        tickets: dict[int, Ticket] = {}
        owners: dict[int, Client] = {}
        for client, share in zip(self._clients, shares, strict=True):
            if share:
                sent = client.submit([jobs[place] for place in share]).tickets
                tickets.update(zip(share, sent, strict=True))
                owners.update((id(ticket), client) for ticket in sent)

        def wait(ticket: Ticket) -> Result:
            return owners[id(ticket)].wait(ticket)

        return Results([tickets[place] for place in range(len(jobs))], wait)

    def close(self) -> None:
        """End all judges and their zygotes."""
        for client in self._clients:
            client.close()
