"""Stores that register, log in, take packages, change what they say of themselves, and read: all the while.

What was acknowledged with a 2xx is noted, and held to: by each later read, and by the audit. A call whose
answer is lost is made again, as a client would; that it had been done shows in a 409, and is as good.
"""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import requests

from chaos.world import PASSWORD, World

TIMEOUT_S = 10.0
PAUSE_S = 0.25
ADOPTING = 0.4
"""How often a client first gives one of the crowd its endpoint, where one wants it."""


@dataclass
class Journal:
    """What the API acknowledged, and where a read disagreed; on the disk as well, a JSON object a line."""

    path: Path
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)
    doubted: set[tuple[int, str, str]] = field(default_factory=set)
    """Company, field and value of changes whose answer was lost: made or not, now or a moment later."""
    answers: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, kind: str, company_id: int, **facts: Any) -> None:
        """Note that the API has said yes."""
        line = {"kind": kind, "company_id": company_id} | facts
        with self._lock, self.path.open("a") as file:
            self.acknowledged.append(line)
            file.write(json.dumps(line) + "\n")

    def disagree(self, sentence: str) -> None:
        """Note that what was acknowledged could not be read."""
        with self._lock:
            self.misread.append(sentence)

    def doubt(self, company_id: int, changes: dict[str, str]) -> None:
        """Note that nobody knows whether a change was made."""
        with self._lock:
            self.doubted |= {(company_id, field, value) for field, value in changes.items()}

    def count(self, answer: str) -> None:
        """Count an answer of the API."""
        with self._lock:
            self.answers[answer] += 1


class Gone(Exception):  # noqa: N818 - it says what happened
    """The run is over, or the API stayed away for too long."""


class Client:
    """One client, in a thread of its own."""

    def __init__(self, world: World, journal: Journal, *, number: int, wanting: "SimpleQueue[int]") -> None:
        self._world, self._journal, self._number, self._wanting = world, journal, number, wanting
        self._chance = random.Random(f"{world.seed}/client/{number}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"client-{number}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let it finish the call that it is in."""
        self._over.set()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join(3 * TIMEOUT_S)

    def _live(self) -> None:
        story = 0
        while not self._over.is_set():
            story += 1
            try:
                if (story == 1 or self._chance.random() < ADOPTING) and self._adopt():
                    continue
                self._register(story)
            except Gone:
                continue

    def _adopt(self) -> bool:
        """Give a company of the crowd its endpoint, where one wants it."""
        try:
            company_id = self._wanting.get_nowait()
        except Empty:
            return False
        token = self._log_in(f"{company_id}@crowd.example")["token"]
        self._listen(company_id, token)
        return True

    def _register(self, story: int) -> None:
        """Live the life of a new store."""
        email = f"client-{self._number}-{story}@store.example"
        body = {
            "site_url": "https://store.example",
            "name": "Ayşe",
            "lastname": "Yılmaz",
            "company_name": f"Mağaza {self._number}-{story}",
            "email": email,
            "password": PASSWORD,
        }
        answer = self._until_done("POST", "/register", body, also=409)
        session = self._log_in(email)
        company_id, token = session["company_id"], session["token"]
        if answer.status_code == 201:
            self._journal.acknowledge("registered", answer.json()["company_id"], email=email)
        self._journal.acknowledge("logged in", company_id)
        if session["status"] != 1:
            self._journal.disagree(f"company {company_id} logged in and has status {session['status']}")
        if self._chance.random() < 0.5:
            self._listen(company_id, token)
        company_package_id = self._take(company_id, token)
        name = "Ayşe"
        for number in range(self._chance.randint(1, 3)):
            name = f"Ayşe {number}"
            self._until_done("PATCH", "/companies/me", {"name": name}, token=token, of=company_id)
            self._journal.acknowledge("changed", company_id, field="name", value=name)
            self._rest()
        current = self._until_done("GET", "/company-packages/current", token=token).json()
        shown = current["company"]["name"]
        if shown != name and (company_id, "name", shown) not in self._journal.doubted:
            self._journal.disagree(f"company {company_id} is called {shown}, not {name}")
        if (current["company_package"] or {}).get("id") != company_package_id:
            self._journal.disagree(f"company {company_id} does not see company package {company_package_id}")
        self._until_done("GET", "/company-payments", token=token)
        self._rest()

    def _log_in(self, email: str) -> dict[str, Any]:
        answer = self._until_done("POST", "/login", {"email": email, "password": PASSWORD})
        session: dict[str, Any] = answer.json()
        return session

    def _take(self, company_id: int, token: str) -> int:
        body = {"company_id": company_id, "package_id": self._chance.choice((1, 2, 3))}
        answer = self._until_done("POST", "/company-packages", body, token=token, also=409)
        if answer.status_code == 201:
            taken = answer.json()
        else:
            current = self._until_done("GET", "/company-packages/current", token=token).json()
            taken = current["company_package"] or {"id": None}
        if taken["id"] is None:
            self._journal.disagree(f"company {company_id} has a package open, and does not see it")
            raise Gone
        self._journal.acknowledge(
            "took",
            company_id,
            company_package_id=taken["id"],
            package_id=taken["package"]["id"],
            start_date=taken["start_date"],
            end_date=taken["end_date"],
        )
        return int(taken["id"])

    def _listen(self, company_id: int, token: str) -> None:
        """Set an endpoint, another one each time the answer with the secret is lost."""
        number = 0

        def body() -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"callback_url": f"{self._world.receiver_urls[1]}/{company_id}/{number}"}

        changed = self._until_done("PATCH", "/companies/me", body, token=token, of=company_id).json()
        self._journal.acknowledge(
            "changed",
            company_id,
            field="callback_url",
            value=changed["callback_url"],
            secret=changed.get("callback_secret"),
        )

    def _until_done(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        *,
        token: str | None = None,
        also: int = 200,
        of: int | None = None,
    ) -> requests.Response:
        """Call until it is a 2xx or the status ``also``; raise `Gone` once the run is over.

        Where it changes the company ``of``, and no answer says whether it did, that is noted.
        """
        while True:
            if self._over.is_set():
                raise Gone
            sent = body() if callable(body) else body
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            try:
                answer = requests.request(
                    method,
                    f"{self._world.api_url}/api/v1{path}",
                    json=sent,
                    headers=headers,
                    timeout=TIMEOUT_S,
                )
            except requests.RequestException:
                self._journal.count("none")
            else:
                self._journal.count(f"{answer.status_code // 100}xx")
                if answer.ok or answer.status_code == also:
                    return answer
                if answer.status_code < 500:
                    self._journal.disagree(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
                    raise Gone
            if of is not None:
                self._journal.doubt(of, sent or {})
            self._rest()

    def _rest(self) -> None:
        self._over.wait(self._chance.uniform(0, 2 * PAUSE_S))
