"""What Prometheus reads, in tests: the text format as figures."""

from collections.abc import Mapping
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

METRICS_TOKEN = "a token for metrics of the tests, long".replace(" ", "-")

Sample = tuple[str, Mapping[str, str]]


class Figures:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return the value of the only sample with a name and labels, None where there is none."""
        found = [
            sample.value
            for sample in self._samples
            if sample.name == name and sample.labels.items() >= labels.items()
        ]
        assert len(found) <= 1, f"{name} {labels} is not one sample"
        return found[0] if found else None

    def labels(self, name: str, label: str) -> set[str]:
        """Return all values of a label."""
        return {sample.labels[label] for sample in self._samples if sample.name == name}

    def names(self) -> set[str]:
        return {sample.name for sample in self._samples}

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples with a name and labels."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and sample.labels.items() >= labels.items()
        )


def bearer(token: str = METRICS_TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def scrape(address: str, *, token: str | None = METRICS_TOKEN) -> Figures:
    """Return what a program at an address answers to Prometheus."""
    headers: Any = bearer(token) if token is not None else {}
    answer = requests.get(f"{address}/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return Figures(answer.text)
