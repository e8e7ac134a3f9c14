import json
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.cli import main

ROUND = {
    "scenario": "low",
    "broker": "jetstream",
    "storage": "file",
    "ids": "msgid",
    "strategy": "sync",
    "messages": 500,
    "payload_bytes": 108,
    "batch": 1000,
    "ack_workers": None,
    "max_pending": None,
    "rate": None,
    "round": 1,
    "msgs_per_s": 5000.0,
    "acked": 500,
    "found": 500,
    "duplicates": 0,
    "success": 1.0,
    "ack_ms_p50": 0.2,
    "ack_ms_p99": 0.4,
    "client_cpu_us_per_msg": 120.0,
    "server_cpu_us_per_msg": None,
    "mgmt_requests_per_msg": 0.0,
    "bytes_sent_per_msg": 258.0,
    "segments_sent_per_msg": 1.0,
    "ack_frames_per_msg": None,
    **{f"rss_{at}_mb": 40.0 for at in ("initial", "peak", "final")},
    **{f"threads_{at}": 1 for at in ("initial", "peak", "final")},
}
FLOW = ROUND | {
    "strategy": "flow",
    "msgs_per_s": 100_000.0,
    "ack_ms_p50": 5.0,
    "client_cpu_us_per_msg": 3.0,
}
PAGE = """# A page
<!-- bench results.json ratio strategy=flow / strategy=sync scenario=low -->old<!-- /bench --> x,
<!-- bench results.json median client_cpu_us_per_msg strategy=flow --><!-- /bench --> us,
<!-- bench results.json least success --><!-- /bench --> stored.
"""


def results(folder: Path, *rounds: dict[str, Any]) -> str:
    file = folder / "results.json"
    machine = {"cpus": 2, "cpu": "one", "memory_gb": 4.0}
    file.write_text(
        json.dumps({"command": "bench", "machine": machine, "versions": {}, "rounds": rounds})
    )
    return str(file)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--scenarios", "tiny"],
            "--scenarios: unknown name 'tiny': choose from low, medium, high, extreme",
        ),
        (["--strategies", ","], "--strategies: ',' has no value: give at least one"),
        (["--ids", "none"], "--ids: unknown name 'none': choose from msgid, header"),
        (
            ["--batch", "10,zero"],
            "--batch: 'zero' is not a valid count: give whole numbers from 1",
        ),
        (
            ["--rounds", "0"],
            "'--rounds': Input should be greater than or equal to 1",
        ),
        (
            ["--plot", "plot.gif"],
            "--plot: plot.gif must end with .png or .svg",
        ),
        (
            ["--strategies", "sink"],
            "--strategies: this choice leaves nothing to measure: name a strategy that its brokers",
        ),
    ],
)
def test_invalid_argument_is_one_clear_error(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option, _, said = sentence.partition(": ")

    assert main(["bench", *arguments]) == 2
    assert f"Error: Invalid value for {option}: {said}" in capsys.readouterr().err


def test_file_that_is_no_results_file_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text("[]")

    assert main(["bench", "--from", str(tmp_path / "other.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_unreachable_server_is_one_clear_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(
            [
                "bench",
                "--scenarios",
                "low",
                "--strategies",
                "sync",
                "--nats-url",
                "nats://127.0.0.1:9",
            ]
        )
        == 2
    )

    said = capfd.readouterr().err
    assert "no NATS server answers at nats://127.0.0.1:9" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"found": 499, "success": 0.998}, "500 of 500 acknowledged, 499 found, 0 twice"),
        ({"acked": 499, "success": 0.998}, "499 of 500 acknowledged, 500 found, 0 twice"),
        ({"duplicates": 3}, "500 of 500 acknowledged, 500 found, 3 twice"),
    ],
)
def test_check_fails_when_a_round_lost_or_duplicated_a_message(
    fault: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = results(tmp_path, ROUND, ROUND | {"round": 2} | fault)

    assert main(["bench", "--from", file, "--check"]) == 1
    assert said in capsys.readouterr().err


def test_check_passes_when_every_message_is_there_once(tmp_path: Path) -> None:
    assert main(["bench", "--from", results(tmp_path, ROUND), "--check"]) == 0


def test_the_markdown_shows_medians_and_ratios(tmp_path: Path) -> None:
    page = tmp_path / "page.md"

    assert main(["bench", "--from", results(tmp_path, ROUND, FLOW), "--markdown", str(page)]) == 0
    assert "| flow | 100,000 (100,000-100,000) | 20 | 5 / 0.40 | 3 | - |" in page.read_text()


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_the_plot_is_drawn(name: str, tmp_path: Path) -> None:
    assert (
        main(["bench", "--from", results(tmp_path, ROUND, FLOW), "--plot", str(tmp_path / name)])
        == 0
    )
    assert (tmp_path / name).stat().st_size > 10_000


def test_a_page_is_filled_from_its_results_file_and_only_there(tmp_path: Path) -> None:
    results(tmp_path, ROUND, FLOW)
    page = tmp_path / "page.md"
    page.write_text(PAGE)

    assert main(["bench", "--fill", str(page)]) == 0

    once = page.read_text()
    assert "scenario=low -->20<!-- /bench --> x," in once
    assert "strategy=flow -->3<!-- /bench --> us," in once
    assert "success -->100%<!-- /bench --> stored." in once
    assert main(["bench", "--fill", str(page)]) == 0
    assert page.read_text() == once


def test_page_that_asks_for_a_missing_number_is_left_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results(tmp_path, ROUND)
    page = tmp_path / "page.md"
    page.write_text(PAGE)

    assert main(["bench", "--fill", str(page)]) == 2
    assert "which has no answer" in capsys.readouterr().err
    assert page.read_text() == PAGE


def test_condition_that_fits_no_round_is_named_although_others_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results(tmp_path, ROUND, FLOW)
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- bench results.json median msgs_per_s strategy=flow,scenario=low -->3<!-- /bench -->"
    )

    assert main(["bench", "--fill", str(page)]) == 2
    assert "no round has strategy=scenario=low" in capsys.readouterr().err
