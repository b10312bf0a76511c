from benchmarks import pages

from digitlab.reproduce.report import PAGE_TABLE, fill


def test_every_table_of_the_page_is_what_was_measured() -> None:
    text = pages.PAGE.read_text("utf-8")
    assert fill(text, pages.tables(), pages.PAGE) == text
    assert len(PAGE_TABLE.findall(text)) >= 6


def test_every_measurement_is_shown() -> None:
    shown = set(PAGE_TABLE.findall(pages.PAGE.read_text("utf-8")))
    assert pages.tables().keys() <= shown | {"two-threads-cpu", "two-threads-multiples"}
    assert (pages.FOLDER / "step_time.png").exists()
