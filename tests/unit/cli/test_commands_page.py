"""The page of the commands says what they are."""

from tests.support.commands_page import PAGE, fill


def test_page_of_the_commands_describes_every_command_and_option() -> None:
    page = PAGE.read_text()

    assert page == fill(page), "make pages brings it in step"
    for command in ("run", "dev", "doctor", "bench", "streams plan", "streams apply"):
        assert f"`bytewax-jetstream {command}`\n" in page
    assert "--snapshot-interval" in page


def test_page_that_was_changed_by_hand_is_noticed() -> None:
    page = PAGE.read_text().replace("--snapshot-interval", "--snapshot")

    assert page != fill(page)
