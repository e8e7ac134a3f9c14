from pathlib import Path

import pytest

from bytewax_jetstream.bench.pages import fill
from bytewax_jetstream.bench.results import check, load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "performance.md", HERE / "README.md"]
REQUIRED = {
    "scenario",
    "broker",
    "storage",
    "ids",
    "strategy",
    "messages",
    "payload_bytes",
    "batch",
    "round",
    "msgs_per_s",
    "ack_ms_mean",
    "ack_ms_p50",
    "ack_ms_p99",
    "ack_ms_max",
    "success",
    "rss_initial_mb",
    "rss_peak_mb",
    "rss_final_mb",
    "threads_initial",
    "threads_peak",
    "threads_final",
    "tasks_final",
    "client_cpu_us_per_msg",
    "server_cpu_us_per_msg",
    "mgmt_requests_per_msg",
}


@pytest.mark.parametrize("page", PAGES, ids=["README", "performance", "claims"])
def test_page_shows_the_numbers_of_its_results_files(page: Path) -> None:
    assert page.read_text() == fill(page), "make pages brings it in step"


@pytest.mark.parametrize(
    "file", sorted((HERE / "results").glob("*.json")), ids=lambda file: file.stem
)
def test_results_file_is_complete_and_shows_no_loss(file: Path) -> None:
    rounds = load(file)["rounds"]

    assert all(set(entry) >= REQUIRED for entry in rounds)
    assert check(rounds) == []
