"""Alert rules and dashboard speak of metrics that exist; promtool checks them where it is installed."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from billing.collection import PassResult
from billing.vitals import Vitals
from config import PROJECT_DIR
from tests.metrics import Figures
from web.exposition import Found
from web.metrics import count_request, request_metrics
from worker_metrics import WorkerMetrics

OPS = PROJECT_DIR / "ops"
RULES = OPS / "alerts.yml"

FOUND = Vitals(
    jobs_due=1,
    jobs_leased=1,
    jobs_lease_expired=1,
    jobs_estimate=1,
    oldest_job_age_s=1,
    jobs_parked=1,
    callbacks={"pending": 1, "waiting": 1, "held": 1, "exhausted": 1},
    callbacks_due=1,
    oldest_callback_age_s=1,
    breakers_open={"platform": 1, "company": 1},
    endpoints_disabled={"platform": 1, "company": 1},
    endpoints_disabled_ever=1,
    workers_alive=1,
    heartbeat_age_s=1,
)

OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels that are not ours to give."""

# What each alert is about: some series, each as its value a minute (`start+growth x times`).
HEALTHY = {
    "vade_database_up": "1+0x60",
    "vade_workers_alive": "1+0x60",
    "vade_queue_oldest_due_job_age_seconds": "20+0x60",
    "vade_queue_lease_expired_jobs": "0+0x60",
    "vade_parked_jobs": "0+0x60",
    'vade_passes_total{outcome="done"}': "0+60x60",
    'vade_passes_total{outcome="broken_off"}': "0+0x60",
    'vade_gateway_call_duration_seconds_count{outcome="answered"}': "0+1000x60",
    'vade_gateway_call_duration_seconds_count{outcome="timeout"}': "0+10x60",
    "vade_callbacks_oldest_due_age_seconds": "5+0x60",
    'vade_callback_breakers_open{recipient="platform"}': "0+0x60",
    'vade_callback_breakers_open{recipient="company"}': "3+0x60",
    'vade_callback_endpoints_disabled{recipient="platform"}': "0+0x60",
    'vade_callback_endpoints_disabled{recipient="company"}': "5+0x60",
    "vade_callback_endpoint_disablings_total": "5+0x60",
    'vade_callback_deliveries_total{outcome="exhausted"}': "9+0x60",
    'vade_http_requests_total{route="/readyz",status="503"}': "0+60x60",
    'vade_http_requests_total{route="/healthz",status="200"}': "0+60x60",
    'vade_http_requests_total{route="/healthz",status="500"}': "0+0x60",
    'vade_http_request_duration_seconds_bucket{route="/healthz",le="0.5"}': "0+60x60",
    'vade_http_request_duration_seconds_bucket{route="/healthz",le="2.5"}': "0+60x60",
    'vade_http_request_duration_seconds_bucket{route="/healthz",le="+Inf"}': "0+60x60",
}
FIRING: dict[str, dict[str, str | None]] = {
    "MetricsMissing": {"vade_database_up": None},
    "DatabaseDown": {"vade_database_up": "0+0x60"},
    "WorkerStale": {"vade_workers_alive": "0+0x60"},
    "QueueGrows": {"vade_queue_oldest_due_job_age_seconds": "2000+60x60"},
    "LeasesExpired": {"vade_queue_lease_expired_jobs": "4+0x60"},
    "JobParked": {"vade_parked_jobs": "1+0x60"},
    "PassesBrokenOff": {'vade_passes_total{outcome="broken_off"}': "0+1x60"},
    "GatewayDown": {'vade_gateway_call_duration_seconds_count{outcome="timeout"}': "0+1100x60"},
    "CallbacksLate": {"vade_callbacks_oldest_due_age_seconds": "301+60x60"},
    "PlatformEndpointFails": {'vade_callback_breakers_open{recipient="platform"}': "1+0x60"},
    "CompanyEndpointsFail": {'vade_callback_breakers_open{recipient="company"}': "21+0x60"},
    "PlatformEndpointDisabled": {'vade_callback_endpoints_disabled{recipient="platform"}': "1+0x60"},
    "EndpointDisabled": {"vade_callback_endpoint_disablings_total": "5+0x30 6+0x30"},
    "CallbacksGivenUp": {'vade_callback_deliveries_total{outcome="exhausted"}': "9+0x30 10+0x30"},
    "ApiErrors": {'vade_http_requests_total{route="/healthz",status="500"}': "0+2x60"},
    "ApiSlow": {'vade_http_request_duration_seconds_bucket{route="/healthz",le="0.5"}': "0+50x60"},
}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OPS / "dashboard.json").read_text())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of the alerts and the dashboard, with where it stands."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def exposed() -> list[str]:
    """All that the programs tell, with every sample that they can have from the start."""
    worker = WorkerMetrics()
    result = PassResult()
    result.charged_minor["TRY"] = 1
    worker.collection().add(result)
    count_request("GET", "/healthz", 200, duration_s=0.1)
    registry = CollectorRegistry()
    registry.register(Found(FOUND, 0.1))
    return [text.decode() for text in (worker.text(), request_metrics(), generate_latest(registry))]


@pytest.mark.parametrize(("where", "query"), list(expressions()))
def test_every_query_is_about_what_is_told(where: str, query: str) -> None:
    told = Figures("".join(exposed()))
    selectors = re.findall(r"\b((?:vade|process)_\w+)(?:\{([^}]*)\})?", query)

    assert selectors, where
    for name, matchers in selectors:
        assert name in told.names(), f"{where}: {name} is no metric"
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label in OF_PROMETHEUS or label in {"route", "status"}:
                continue
            values = told.labels(name, label)
            wanted = value.split("|") if "~" in operator else [value]
            assert set(wanted) <= values, f"{where}: {label} of {name} is one of {values}"


def test_every_alert_names_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]

    assert len(set(names)) == len(names)
    assert set(names) == FIRING.keys(), "each is seen to fire"
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in anchors(PROJECT_DIR / page), f"{rule['alert']}: no section {anchor}"
        assert rule["annotations"]["summary"].endswith(".")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_names() -> None:
    panels = dashboard()["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert all(x < 24 for x, _ in taken)
    for panel in panels:
        assert panel["title"]
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]


def test_every_metric_says_what_it_is_and_in_which_unit() -> None:
    for text in exposed():
        for name, family in Figures(text).families.items():
            if name.startswith("vade_"):
                assert family.documentation.endswith("."), name
            if family.type == "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples), name
            if re.search(r"\bseconds\b", family.documentation.lower().split(".")[0]) and "_up" not in name:
                assert "_seconds" in name or family.name == "vade_workers_alive", name


# promtool --------------------------------------------------------------------------------------------------


@pytest.fixture
def promtool() -> str:
    """Prometheus's own checker (Debian: apt install prometheus)."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    return found


def check(promtool: str, *arguments: str, text: str | None = None, cwd: Path = OPS) -> None:
    done = subprocess.run(
        [promtool, *arguments], cwd=cwd, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip() or "SUCCESS" in done.stdout + done.stderr, done.stderr


def test_promtool_takes_the_rules_and_the_settings(promtool: str) -> None:
    check(promtool, "check", "rules", "alerts.yml")
    check(promtool, "check", "config", "--syntax-only", "prometheus.yml")


def test_promtool_takes_the_metrics(promtool: str) -> None:
    for text in exposed():
        check(promtool, "check", "metrics", text=text)


def test_each_alert_fires_when_it_should_and_none_when_all_is_well(promtool: str, tmp_path: Path) -> None:
    cases: dict[str, dict[str, str | None]] = {"": {}, **FIRING}
    tests = [
        {
            "name": name or "all is well",
            "interval": "1m",
            "input_series": [
                {"series": series, "values": values}
                for series, values in (HEALTHY | changed).items()
                if values is not None
            ],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "50m",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name else [],
                }
            ],
        }
        for name, changed in cases.items()
    ]
    file = tmp_path / "alerts.test.yml"
    # JSON is YAML.
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))

    check(promtool, "test", "rules", str(file))
